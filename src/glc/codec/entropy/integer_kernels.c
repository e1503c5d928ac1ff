/* Layers of the integer networks (docs/bitstream.md, part 6) in 16-bit and 32-bit integers.
 *
 * An activation X of 27 bits is split into X = 4096 H + L with -2048 <= L < 2048. Weights W have 16 bits. Instructions
 * that add pairs of 16-bit products to a 32-bit sum then compute the sums of W H and of W L:
 *
 *     x [I][positions]  --pack-->     panels [pairs of I][H, L][LANES][2], 16 bits
 *     w x panels        --product-->  sums of W H and W L, 32 bits  --activation-->  activations, 32 bits
 *
 * The sums fit 32 bits if
 *     - the sum of |W| over each row of weights is less than 2^20, which the caller must guarantee, and
 *     - the largest |H| is at most the layer's `max_high`, which is checked here: otherwise the task fails. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512BW__)
#define LANES 16
#define ROWS 8 /* output channels of a product: their sums at LANES positions stay in registers */
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 4
#else
#error "needs AVX2 or AVX-512: no other instruction adds pairs of 16-bit products"
#endif
#define GROUP 32 /* positions computed together: their activations stay in the L2 cache */
#define LOW_BITS 12
#define INLINE static inline __attribute__((always_inline))

typedef int vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec add_pairs(vec sum, vec a, vec b) {
#if defined(__AVX512VNNI__)
    return (vec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (vec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (vec)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
    return sum + (vec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}

struct layer {
    const int *weights; /* [O / ROWS, rounded up][pairs][ROWS], each a pair of 16 bits */
    const double *bias; /* [out_channels], in units of 2^-12 */
    int64_t out_channels, in_channels;
    int64_t max_high; /* largest |H| for which the sums fit 32 bits */
};

static int64_t pair_count(int64_t in_channels) { return (in_channels + 1) / 2; }

/* Number of 16-bit values of packed weights. */
int64_t glc_size(int64_t out_channels, int64_t in_channels) {
    return (out_channels + ROWS - 1) / ROWS * ROWS * 2 * pair_count(in_channels);
}

/* Pack weights [O][I], float32 or float64, to 16-bit units of 2^-14, in pairs of input channels. */
#define WEIGHTS(NAME, TYPE)                                                                                            \
    void NAME(const TYPE *w, int64_t out_channels, int64_t in_channels, short *to) {                                   \
        for (int64_t o = 0; o < out_channels; o += ROWS)                                                               \
            for (int64_t k = 0; k < 2 * pair_count(in_channels); k += 2)                                               \
                for (int64_t r = o; r < o + ROWS; r++)                                                                 \
                    for (int64_t j = k; j < k + 2; j++)                                                                \
                        *to++ = r < out_channels && j < in_channels                                                    \
                                    ? (short)__builtin_rint(w[r * in_channels + j] * (TYPE)16384)                      \
                                    : 0;                                                                               \
    }
WEIGHTS(glc_weights_of_floats, float)
WEIGHTS(glc_weights_of_doubles, double)

static const double ACTIVATION_LIMIT = 67108864.0; /* 2^26 */
static const double ROUNDING = 6755399441055744.0; /* 1.5 * 2^52: the unit in the last place is 1 */

/* Round x to the nearest integer, halves to even, and clamp it to +-2^26. */
INLINE int activation(double x) {
    x = x > -ACTIVATION_LIMIT ? x : -ACTIVATION_LIMIT;
    x = x < ACTIVATION_LIMIT ? x : ACTIVATION_LIMIT;
    return (int)((x + ROUNDING) - ROUNDING);
}

/* Split the activations a and b of two channels at LANES positions into a panel; return the largest |H|. */
INLINE int split(const int *a, const int *b, int *panel) {
    int max_high = 0;
    for (int l = 0; l < LANES; l++) {
        int high_a = (a[l] + (1 << (LOW_BITS - 1))) >> LOW_BITS, high_b = (b[l] + (1 << (LOW_BITS - 1))) >> LOW_BITS;
        panel[l] = (high_a & 0xffff) | (int)((unsigned)high_b << 16);
        panel[LANES + l] =
            ((a[l] - high_a * (1 << LOW_BITS)) & 0xffff) | (int)((unsigned)(b[l] - high_b * (1 << LOW_BITS)) << 16);
        int size_a = high_a < 0 ? -high_a : high_a, size_b = high_b < 0 ? -high_b : high_b;
        max_high = size_a > max_high ? size_a : max_high;
        max_high = size_b > max_high ? size_b : max_high;
    }
    return max_high;
}

/* sums [ROWS][H, L][LANES] = weights [pairs][ROWS] x panel */
INLINE void product(const int *weights, const int *panel, int64_t count, int *sums) {
    vec high[ROWS], low[ROWS];
    for (int r = 0; r < ROWS; r++) high[r] = low[r] = (vec){0};
    for (int64_t k = 0; k < count; k++, weights += ROWS, panel += 2 * LANES) {
        vec h = *(const vec *)panel, l = *(const vec *)(panel + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            vec w = (vec){0} + weights[r];
            high[r] = add_pairs(high[r], h, w);
            low[r] = add_pairs(low[r], l, w);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        *(vec *)(sums + 2 * r * LANES) = high[r];
        *(vec *)(sums + (2 * r + 1) * LANES) = low[r];
    }
}

/* Compute a layer at `count` positions, from panels to activations [O][GROUP]. */
static void apply_layer(const struct layer *layer, const int *panels, int64_t count, int *to) {
    int64_t size = pair_count(layer->in_channels);
    for (int64_t o = 0; o < layer->out_channels; o += ROWS)
        for (int64_t p = 0; p < count; p += LANES) {
            int sums[2 * ROWS * LANES];
            product(layer->weights + o * size, panels + 2 * p * size, size, sums);
            int64_t rows = layer->out_channels - o < ROWS ? layer->out_channels - o : ROWS;
            for (int64_t r = 0; r < rows; r++) {
                const int *high = sums + 2 * r * LANES, *low = high + LANES;
                double bias = layer->bias[o + r];
                for (int l = 0; l < LANES; l++) /* exact in float64 up to the one rounding */
                    to[(o + r) * GROUP + p + l] =
                        activation(((double)high[l] * (1 << LOW_BITS) + (double)low[l]) * (1.0 / 16384) + bias);
            }
        }
}

/* A 1x1 convolution `first`; or, if `gated`, a feed-forward layer: `first`, gated product of its halves, `second`. */
struct task {
    struct layer first, second;
    int gated;
    const double *x; /* [I][positions], values; null if `units` holds the input in units of 2^-12 */
    const int *units;
    double *out; /* [O][positions], values; null if the output goes to `out_units` */
    int *out_units;
    const double *added; /* [O][positions], added to `out`; may be null */
    int64_t positions;
    double slope; /* of the leaky rectifier of `out_units`, or of the gates */
    int64_t threads;
    int64_t next; /* first position that no thread has taken */
    int failed;   /* an activation is too large or not a number, or an allocation failed */
};

/* Pack inputs into panels; return the largest |H|, or 2^30, which is too large for any layer, if an input is NaN. */
static int pack(const struct task *task, int64_t start, int64_t count, int *panels) {
    int max_high = 0, has_nan = 0;
    int64_t in_channels = task->first.in_channels;
    for (int64_t p = 0; p < count; p += LANES) {
        int64_t lanes = count - p < LANES ? count - p : LANES;
        for (int64_t k = 0; k < in_channels; k += 2, panels += 2 * LANES) {
            int pair[2][LANES] = {{0}};
            for (int64_t j = 0; j < 2 && k + j < in_channels; j++) {
                int64_t at = (k + j) * task->positions + start + p;
                if (task->units)
                    for (int64_t l = 0; l < lanes; l++) pair[j][l] = task->units[at + l];
                else if (lanes == LANES)
                    for (int l = 0; l < LANES; l++) {
                        pair[j][l] = activation(task->x[at + l] * 4096);
                        has_nan |= task->x[at + l] != task->x[at + l];
                    }
                else
                    for (int64_t l = 0; l < lanes; l++) {
                        pair[j][l] = activation(task->x[at + l] * 4096);
                        has_nan |= task->x[at + l] != task->x[at + l];
                    }
            }
            int size = split(pair[0], pair[1], panels);
            max_high = size > max_high ? size : max_high;
        }
    }
    return has_nan ? 1 << 30 : max_high;
}

/* Pack the gated product of the halves of wide [2 C][GROUP] into panels; return the largest |H|. */
static int gate_halves(const struct task *task, const int *wide, int64_t count, int *panels) {
    int max_high = 0;
    int64_t channels = task->second.in_channels;
    for (int64_t p = 0; p < count; p += LANES)
        for (int64_t k = 0; k < channels; k += 2, panels += 2 * LANES) {
            int pair[2][LANES] = {{0}};
            for (int64_t j = 0; j < 2 && k + j < channels; j++) {
                const int *value = wide + (k + j) * GROUP + p, *gate = value + channels * GROUP;
                for (int l = 0; l < LANES; l++) {
                    double g = gate[l];
                    g = g < 0 ? g * task->slope : g;
                    pair[j][l] = activation((double)value[l] * g * (1.0 / 4096));
                }
            }
            int size = split(pair[0], pair[1], panels);
            max_high = size > max_high ? size : max_high;
        }
    return max_high;
}

/* Write `count` positions of the output. */
static void write_output(const struct task *task, const int *result, int64_t out_channels, int64_t start,
                         int64_t count) {
    for (int64_t o = 0; o < out_channels; o++, result += GROUP) {
        int64_t at = o * task->positions + start;
        if (!task->out)
            for (int64_t l = 0; l < count; l++)
                task->out_units[at + l] = result[l] < 0 ? activation(result[l] * task->slope) : result[l];
        else if (task->added)
            for (int64_t l = 0; l < count; l++) task->out[at + l] = task->added[at + l] + result[l] * (1.0 / 4096);
        else
            for (int64_t l = 0; l < count; l++) task->out[at + l] = result[l] * (1.0 / 4096);
    }
}

static void *run_task(void *argument) {
    struct task *task = argument;
    const struct layer *first = &task->first, *second = &task->second;
    int64_t in_channels = 2 * pair_count(first->in_channels),
            between = task->gated ? 2 * pair_count(second->in_channels) : 0;
    int64_t wide =
        first->out_channels > (task->gated ? second->out_channels : 0) ? first->out_channels : second->out_channels;
    int *panels = malloc(sizeof(int) * GROUP * ((in_channels > between ? in_channels : between) + wide));
    if (!panels) {
        __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    int *result = panels + GROUP * (in_channels > between ? in_channels : between);
    while (!__atomic_load_n(&task->failed, __ATOMIC_RELAXED)) {
        int64_t start = __atomic_fetch_add(&task->next, GROUP, __ATOMIC_RELAXED);
        if (start >= task->positions) break;
        int64_t count = task->positions - start < GROUP ? task->positions - start : GROUP;
        int fits = pack(task, start, count, panels) <= first->max_high;
        if (fits) apply_layer(first, panels, count, result);
        if (fits && task->gated) {
            fits = gate_halves(task, result, count, panels) <= second->max_high;
            if (fits) apply_layer(second, panels, count, result);
        }
        if (fits)
            write_output(task, result, task->gated ? second->out_channels : first->out_channels, start, count);
        else
            __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
    }
    free(panels);
    return 0;
}

/* Run `part` on up to `threads` threads including this one; continue with fewer if creation fails. */
static void run_in_threads(void *(*part)(void *), void *task, int64_t threads) {
    pthread_t *others = threads > 1 ? malloc(sizeof(pthread_t) * (threads - 1)) : 0;
    int64_t started = 0;
    while (others && started < threads - 1 && !pthread_create(&others[started], 0, part, task)) started++;
    part(task);
    while (started) pthread_join(others[--started], 0);
    free(others);
}

/* Checked at load against the mirrors of these structures in integer_kernels.py. */
int64_t glc_sizeof_task(void) { return sizeof(struct task); }

/* Return 0, or 1 if the task failed and the output is not valid. */
int glc_layers(struct task *task) {
    int64_t groups = (task->positions + GROUP - 1) / GROUP;
    run_in_threads(run_task, task, task->threads < groups ? task->threads : groups);
    return task->failed;
}

/* A depth-wise convolution of odd size with zero padding, from units to units of 2^-12. */
struct planes {
    const int *x; /* [channels][height][width] */
    int *out;
    const double *weights; /* [side * side][channels] */
    const double *bias;    /* [channels], in units of 2^-12 */
    int64_t channels, height, width, side;
    int64_t threads;
    int64_t next; /* first channel that no thread has taken */
    int failed;
};

int64_t glc_sizeof_planes(void) { return sizeof(struct planes); }

static void *convolve_planes(void *argument) {
    struct planes *all = argument;
    int64_t radius = all->side / 2, width = all->width;
    double *sums = malloc(sizeof(double) * width);
    if (!sums) {
        __atomic_store_n(&all->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    for (;;) {
        int64_t c = __atomic_fetch_add(&all->next, 1, __ATOMIC_RELAXED);
        if (c >= all->channels) break;
        const int *x = all->x + c * all->height * width;
        int *out = all->out + c * all->height * width;
        for (int64_t y = 0; y < all->height; y++, out += width) {
            for (int64_t i = 0; i < width; i++) sums[i] = all->bias[c];
            for (int64_t t = 0; t < all->side * all->side; t++) {
                int64_t row = y + t / all->side - radius, shift = t % all->side - radius;
                if (row < 0 || row >= all->height) continue;
                double w = all->weights[t * all->channels + c];
                const int *from = x + row * width + shift;
                int64_t end = shift > 0 ? width - shift : width;
                for (int64_t i = shift < 0 ? -shift : 0; i < end; i++) sums[i] += w * from[i];
            }
            for (int64_t i = 0; i < width; i++) out[i] = activation(sums[i]);
        }
    }
    free(sums);
    return 0;
}

int glc_planes(struct planes *all) {
    run_in_threads(convolve_planes, all, all->threads < all->channels ? all->threads : all->channels);
    return all->failed;
}
