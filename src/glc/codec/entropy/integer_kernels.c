/* Layers of the integer networks (docs/bitstream.md, part 6) in integers of 16 and 32 bits.
 *
 * An activation X, of 27 bits, is cut into two, X = 4096 H + L with -2048 <= L < 2048. Weights have 16 bits. So sums of
 * products W H and W L are formed by instructions that take two products each to 32 bits:
 *
 *     x [ins][positions]  --pack-->  panels [pairs of ins][H, L][LANES][2], 16 bits
 *     w x panels          --product-->  sums of H and L, 32 bits  --settle-->  activations, 32 bits
 *
 * They fit where the magnitudes of a row of weights add up to less than 2^20, which the caller guarantees, and the
 * largest |H| is at most the layer's `max_high`, which is checked here: else the output is not valid. */

#include <pthread.h>
#include <stdlib.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512BW__)
#define LANES 16
#define ROWS 8 /* channels of the output that are held in registers, with LANES positions */
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 4
#else
#error "no instruction that adds pairs of products"
#endif
#define GROUP 32 /* positions whose activations stay in the L2 cache */
#define LOW 12
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
    const int *weights; /* [out_channels / ROWS, rounded up][pairs][ROWS], two of 16 bits each, as below */
    const double *bias; /* [out_channels], in units of activations */
    long out_channels, in_channels;
    long max_high; /* largest |H| for which sums fit */
};

static long pairs(long ins) { return (ins + 1) / 2; }

/* Values of weights as they are multiplied. */
long glc_size(long outs, long ins) { return (outs + ROWS - 1) / ROWS * ROWS * 2 * pairs(ins); }

/* Weights [outs][ins], float32 or float64, in units of 2^-14, pair by pair. */
#define WEIGHTS(NAME, TYPE)                                                                                           \
    void NAME(const TYPE *w, long outs, long ins, short *to) {                                                        \
        for (long o = 0; o < outs; o += ROWS)                                                                         \
            for (long k = 0; k < 2 * pairs(ins); k += 2)                                                              \
                for (long r = o; r < o + ROWS; r++)                                                                   \
                    for (long j = k; j < k + 2; j++)                                                                  \
                        *to++ = r < outs && j < ins ? (short)__builtin_rint(w[r * ins + j] * (TYPE)16384) : 0;        \
    }
WEIGHTS(glc_weights_of_floats, float)
WEIGHTS(glc_weights_of_doubles, double)

static const double TOP = 67108864.0, EVEN = 6755399441055744.0; /* 2^26; 1.5 * 2^52 leaves no room for a fraction */

/* The whole number nearest to x, halves to even, within +-2^26. */
INLINE int activation(double x) {
    x = x > -TOP ? x : -TOP;
    x = x < TOP ? x : TOP;
    return (int)((x + EVEN) - EVEN);
}

/* Activations a and b of a pair of channels, LANES positions of them, into a panel; returns the largest |H|. */
INLINE int split(const int *a, const int *b, int *panel) {
    int most = 0;
    for (int l = 0; l < LANES; l++) {
        int high = (a[l] + (1 << (LOW - 1))) >> LOW, other = (b[l] + (1 << (LOW - 1))) >> LOW;
        panel[l] = (high & 0xffff) | (int)((unsigned)other << 16);
        panel[LANES + l] = ((a[l] - high * (1 << LOW)) & 0xffff) | (int)((unsigned)(b[l] - other * (1 << LOW)) << 16);
        int size = high < 0 ? -high : high, size2 = other < 0 ? -other : other;
        most = size > most ? size : most;
        most = size2 > most ? size2 : most;
    }
    return most;
}

/* sums [ROWS][H, L][LANES] = weights [pairs][ROWS] x panel */
INLINE void product(const int *weights, const int *panel, long count, int *sums) {
    vec high[ROWS], low[ROWS];
    for (int r = 0; r < ROWS; r++) high[r] = low[r] = (vec){0};
    for (long k = 0; k < count; k++, weights += ROWS, panel += 2 * LANES) {
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

/* Activations to [outs][GROUP] of `count` positions, from their panels. */
static void apply(const struct layer *layer, const int *panels, long count, int *to) {
    long size = pairs(layer->in_channels);
    for (long o = 0; o < layer->out_channels; o += ROWS)
        for (long p = 0; p < count; p += LANES) {
            int sums[2 * ROWS * LANES];
            product(layer->weights + o * size, panels + 2 * p * size, size, sums);
            long rows = layer->out_channels - o < ROWS ? layer->out_channels - o : ROWS;
            for (long r = 0; r < rows; r++) {
                const int *high = sums + 2 * r * LANES, *low = high + LANES;
                double bias = layer->bias[o + r];
                for (int l = 0; l < LANES; l++) /* all of it exact, but for the one rounding */
                    to[(o + r) * GROUP + p + l] =
                        activation(((double)high[l] * (1 << LOW) + (double)low[l]) * (1.0 / 16384) + bias);
            }
        }
}

/* One or two layers: a convolution of 1x1, or a feed-forward layer, whose first result is
 * gated and goes through `second`. */
struct task {
    struct layer first, second;
    int gated;
    const double *x; /* [ins][positions] in values, or none, then in units: */
    const int *units;
    double *out; /* [outs][positions] in values, or none, then in units: */
    int *out_units;
    const double *added; /* [outs][positions], to the output in values; or none */
    long positions;
    double slope; /* of a rectifier of the output in units, or of the gates */
    long threads;
    long next;  /* position that nobody computes yet */
    int failed; /* an activation was too large, or memory could not be had */
};

/* Returns the largest |H|; one that fits no layer where an input is no number. */
static int pack(const struct task *task, long start, long count, int *panels) {
    int most = 0, none = 0;
    long ins = task->first.in_channels;
    for (long p = 0; p < count; p += LANES) {
        long some = count - p < LANES ? count - p : LANES;
        for (long k = 0; k < ins; k += 2, panels += 2 * LANES) {
            int whole[2][LANES] = {{0}};
            for (long j = 0; j < 2 && k + j < ins; j++) {
                long at = (k + j) * task->positions + start + p;
                if (task->units)
                    for (long l = 0; l < some; l++) whole[j][l] = task->units[at + l];
                else if (some == LANES)
                    for (int l = 0; l < LANES; l++) {
                        whole[j][l] = activation(task->x[at + l] * 4096);
                        none |= task->x[at + l] != task->x[at + l];
                    }
                else
                    for (long l = 0; l < some; l++) {
                        whole[j][l] = activation(task->x[at + l] * 4096);
                        none |= task->x[at + l] != task->x[at + l];
                    }
            }
            int size = split(whole[0], whole[1], panels);
            most = size > most ? size : most;
        }
    }
    return none ? 1 << 30 : most;
}

/* The gated product of the halves of wide [2 outs][GROUP] as panels. */
static int gate_halves(const struct task *task, const int *wide, long count, int *panels) {
    int most = 0;
    long outs = task->second.in_channels;
    for (long p = 0; p < count; p += LANES)
        for (long k = 0; k < outs; k += 2, panels += 2 * LANES) {
            int whole[2][LANES] = {{0}};
            for (long j = 0; j < 2 && k + j < outs; j++) {
                const int *value = wide + (k + j) * GROUP + p, *gate = value + outs * GROUP;
                for (int l = 0; l < LANES; l++) {
                    double g = gate[l];
                    g = g < 0 ? g * task->slope : g;
                    whole[j][l] = activation((double)value[l] * g * (1.0 / 4096));
                }
            }
            int size = split(whole[0], whole[1], panels);
            most = size > most ? size : most;
        }
    return most;
}

static void finish(const struct task *task, const int *made, long outs, long start, long count) {
    for (long o = 0; o < outs; o++, made += GROUP) {
        long at = o * task->positions + start;
        if (!task->out)
            for (long l = 0; l < count; l++)
                task->out_units[at + l] = made[l] < 0 ? activation(made[l] * task->slope) : made[l];
        else if (task->added)
            for (long l = 0; l < count; l++) task->out[at + l] = task->added[at + l] + made[l] * (1.0 / 4096);
        else
            for (long l = 0; l < count; l++) task->out[at + l] = made[l] * (1.0 / 4096);
    }
}

static void *compute(void *given) {
    struct task *task = given;
    const struct layer *first = &task->first, *second = &task->second;
    long ins = 2 * pairs(first->in_channels), between = task->gated ? 2 * pairs(second->in_channels) : 0;
    long wide = first->out_channels > (task->gated ? second->out_channels : 0) ? first->out_channels : second->out_channels;
    int *panels = malloc(sizeof(int) * GROUP * ((ins > between ? ins : between) + wide));
    if (!panels) {
        __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    int *made = panels + GROUP * (ins > between ? ins : between);
    while (!__atomic_load_n(&task->failed, __ATOMIC_RELAXED)) {
        long start = __atomic_fetch_add(&task->next, GROUP, __ATOMIC_RELAXED);
        if (start >= task->positions) break;
        long count = task->positions - start < GROUP ? task->positions - start : GROUP;
        int fits = pack(task, start, count, panels) <= first->max_high;
        if (fits) apply(first, panels, count, made);
        if (fits && task->gated) {
            fits = gate_halves(task, made, count, panels) <= second->max_high;
            if (fits) apply(second, panels, count, made);
        }
        if (fits)
            finish(task, made, task->gated ? second->out_channels : first->out_channels, start, count);
        else
            __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
    }
    free(panels);
    return 0;
}

/* Run `part` in up to `threads` threads, this one among them; in fewer where one cannot be created. */
static void run_in_threads(void *(*part)(void *), void *task, long threads) {
    pthread_t *others = threads > 1 ? malloc(sizeof(pthread_t) * (threads - 1)) : 0;
    long started = 0;
    while (others && started < threads - 1 && !pthread_create(&others[started], 0, part, task)) started++;
    part(task);
    while (started) pthread_join(others[--started], 0);
    free(others);
}

/* For the mirrors of these structures in integer_kernels.py. */
long glc_sizeof_task(void) { return sizeof(struct task); }

/* Returns 0, or 1 where the output is not valid. */
int glc_layers(struct task *task) {
    long groups = (task->positions + GROUP - 1) / GROUP;
    run_in_threads(compute, task, task->threads < groups ? task->threads : groups);
    return task->failed;
}

/* A depth-wise convolution of odd size in units, surrounded by zeros. */
struct planes {
    const int *x; /* [channels][height][width] */
    int *out;
    const double *weights; /* [side * side][channels] */
    const double *bias;    /* [channels], in units of activations */
    long channels, height, width, side;
    long threads;
    long next; /* channel that nobody computes yet */
    int failed;
};

long glc_sizeof_planes(void) { return sizeof(struct planes); }

static void *convolve(void *given) {
    struct planes *all = given;
    long radius = all->side / 2, width = all->width;
    double *sums = malloc(sizeof(double) * width);
    if (!sums) {
        __atomic_store_n(&all->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    for (;;) {
        long c = __atomic_fetch_add(&all->next, 1, __ATOMIC_RELAXED);
        if (c >= all->channels) break;
        const int *x = all->x + c * all->height * width;
        int *out = all->out + c * all->height * width;
        for (long y = 0; y < all->height; y++, out += width) {
            for (long i = 0; i < width; i++) sums[i] = all->bias[c];
            for (long t = 0; t < all->side * all->side; t++) {
                long row = y + t / all->side - radius, shift = t % all->side - radius;
                if (row < 0 || row >= all->height) continue;
                double w = all->weights[t * all->channels + c];
                const int *from = x + row * width + shift;
                long end = shift > 0 ? width - shift : width;
                for (long i = shift < 0 ? -shift : 0; i < end; i++) sums[i] += w * from[i];
            }
            for (long i = 0; i < width; i++) out[i] = activation(sums[i]);
        }
    }
    free(sums);
    return 0;
}

int glc_planes(struct planes *all) {
    run_in_threads(convolve, all, all->threads < all->channels ? all->threads : all->channels);
    return all->failed;
}
