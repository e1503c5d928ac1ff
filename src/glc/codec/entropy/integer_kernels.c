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
 *     - the largest |H| is at most the layer's `max_high`, which is checked here: otherwise the task fails.
 *
 * Where the processor multiplies matrices of bytes (AMX), X is split into 3 bytes, or 4 if a group of positions has
 * activations of 2^23 and more, and W into 2: the products of byte i of X and byte j of W are summed by i + j. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__AMX_INT8__) && defined(__AVX512BW__)
#define AMX 1
#else
#define AMX 0
#endif

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
#define GROUP 64 /* positions computed together: their activations stay in the L2 cache */
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

static int uses_amx = 0;

struct layer {
    const int *weights; /* [O / ROWS, rounded up][pairs][ROWS], each a pair of 16 bits; with AMX tiles of bytes */
    const double *bias; /* [out_channels], in units of 2^-12 */
    int64_t out_channels, in_channels;
    int64_t max_high; /* largest |H| for which the sums fit 32 bits */
};

static int64_t pair_count(int64_t in_channels) { return (in_channels + 1) / 2; }

/* A tile register holds SIDE rows of DEPTH bytes: weights of SIDE output channels, or 4 input channels a row of
 * activations at SIDE positions. */
#define SIDE 16
#define DEPTH 64
#define TILE_BYTES (SIDE * DEPTH)
#define DIGITS 4 /* bytes of an activation */

INLINE int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Number of 16-bit values of packed weights. */
int64_t glc_size(int64_t out_channels, int64_t in_channels) {
    if (uses_amx) return blocks(out_channels, SIDE) * blocks(in_channels, DEPTH) * TILE_BYTES;
    return (out_channels + ROWS - 1) / ROWS * ROWS * 2 * pair_count(in_channels);
}

/* Pack weights [O][I], float32 or float64, to 16-bit units of 2^-14, in pairs of input channels; with AMX to tiles
 * [O / SIDE][I / DEPTH] of their lower bytes, unsigned, and of their upper bytes, signed. */
#define WEIGHTS(NAME, TYPE)                                                                                            \
    void NAME(const TYPE *w, int64_t out_channels, int64_t in_channels, short *to) {                                   \
        if (uses_amx) {                                                                                                \
            unsigned char *tile = (unsigned char *)to;                                                                 \
            for (int64_t o = 0; o < out_channels; o += SIDE)                                                           \
                for (int64_t k = 0; k < in_channels; k += DEPTH, tile += 2 * TILE_BYTES)                               \
                    for (int64_t r = 0; r < SIDE; r++)                                                                 \
                        for (int64_t j = 0; j < DEPTH; j++) {                                                          \
                            int unit = 0;                                                                              \
                            if (o + r < out_channels && k + j < in_channels)                                           \
                                unit = (int)__builtin_rint(w[(o + r) * in_channels + k + j] * (TYPE)16384);            \
                            tile[r * DEPTH + j] = (unsigned char)unit;                                                 \
                            tile[TILE_BYTES + r * DEPTH + j] = (unsigned char)(unit >> 8);                             \
                        }                                                                                              \
            return;                                                                                                    \
        }                                                                                                              \
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

#if AMX
/* Use AMX from now on, or not; return whether it is used. The process must have the permission. */
int glc_use_amx(int wanted) { return uses_amx = wanted; }

static void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = SIDE, config.row_bytes[t] = DEPTH;
    _tile_loadconfig(&config);
}

/* sums [digits + 1][SIDE outputs][SIDE positions]: products of byte i of activations and byte j of weights, summed
 * by i + j, in registers 0 to 4. 32 bits hold them for 16,000 input channels. */
INLINE void byte_products(const char *weights, const char *bytes, int64_t steps, int digits, int *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (digits == 4) _tile_zero(4);
    for (int64_t k = 0; k < steps; k++, weights += 2 * TILE_BYTES, bytes += DIGITS * TILE_BYTES) {
        _tile_loadd(6, weights, DEPTH);
        _tile_loadd(7, weights + TILE_BYTES, DEPTH);
        _tile_loadd(5, bytes, DEPTH);
        _tile_dpbuud(0, 6, 5);
        _tile_dpbsud(1, 7, 5);
        _tile_loadd(5, bytes + TILE_BYTES, DEPTH);
        _tile_dpbuud(1, 6, 5);
        _tile_dpbsud(2, 7, 5);
        _tile_loadd(5, bytes + 2 * TILE_BYTES, DEPTH);
        if (digits == 3) {
            _tile_dpbusd(2, 6, 5);
            _tile_dpbssd(3, 7, 5);
        } else {
            _tile_dpbuud(2, 6, 5);
            _tile_dpbsud(3, 7, 5);
            _tile_loadd(5, bytes + 3 * TILE_BYTES, DEPTH);
            _tile_dpbusd(3, 6, 5);
            _tile_dpbssd(4, 7, 5);
        }
    }
    _tile_stored(0, sums, DEPTH);
    _tile_stored(1, sums + SIDE * SIDE, DEPTH);
    _tile_stored(2, sums + 2 * SIDE * SIDE, DEPTH);
    _tile_stored(3, sums + 3 * SIDE * SIDE, DEPTH);
    if (digits == 4) _tile_stored(4, sums + 4 * SIDE * SIDE, DEPTH);
}

/* What apply_layer does. */
INLINE void apply_layer_to_bytes(const struct layer *layer, const char *bytes, int64_t count, int digits, int *to) {
    int64_t steps = blocks(layer->in_channels, DEPTH);
    const char *weights = (const char *)layer->weights;
    for (int64_t o = 0; o < layer->out_channels; o += SIDE, weights += steps * 2 * TILE_BYTES)
        for (int64_t p = 0; p < count; p += SIDE) {
            int sums[5][SIDE][SIDE] __attribute__((aligned(64)));
            byte_products(weights, bytes + p / SIDE * steps * DIGITS * TILE_BYTES, steps, digits, sums[0][0]);
            int64_t rows = layer->out_channels - o < SIDE ? layer->out_channels - o : SIDE;
            for (int64_t r = 0; r < rows; r++) {
                double bias = layer->bias[o + r];
                for (int l = 0; l < SIDE; l++) { /* exact in float64 up to the one rounding */
                    double sum =
                        sums[0][r][l] + 256.0 * sums[1][r][l] + 65536.0 * sums[2][r][l] + 16777216.0 * sums[3][r][l];
                    if (digits == 4) sum += 4294967296.0 * sums[4][r][l];
                    to[(o + r) * GROUP + p + l] = activation(sum * (1.0 / 16384) + bias);
                }
            }
        }
}

/* Split the activations of four channels at SIDE positions into bytes, one tile each; return their magnitudes' bits. */
INLINE int split_bytes(const int (*a)[SIDE], char *to) {
    vec size = {0}, x[4];
    for (int j = 0; j < 4; j++) {
        x[j] = *(const vec *)a[j];
        size |= x[j] ^ (x[j] >> 31);
    }
#pragma GCC unroll 4
    for (int d = 0; d < DIGITS; d++)
        *(vec *)(to + d * TILE_BYTES) =
            (x[0] >> 8 * d & 255) | (x[1] >> 8 * d & 255) << 8 | (x[2] >> 8 * d & 255) << 16 | (x[3] >> 8 * d) << 24;
    return _mm512_reduce_or_epi32((__m512i)size);
}
#else
int glc_use_amx(int wanted) { return 0 * wanted; }
#endif

/* Compute a layer at `count` positions, from panels to activations [O][GROUP]. `high` is what packing returned. */
static void apply_layer(const struct layer *layer, const int *panels, int64_t count, int high, int *to) {
#if AMX
    if (uses_amx) {
        if (high < 1 << 23)
            apply_layer_to_bytes(layer, (const char *)panels, count, 3, to);
        else
            apply_layer_to_bytes(layer, (const char *)panels, count, 4, to);
        return;
    }
#endif
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

/* Read inputs of one channel at LANES positions as activations; return whether one is NaN. */
INLINE int read_input(const struct task *task, int64_t channel, int64_t position, int64_t lanes, int *to) {
    int64_t at = channel * task->positions + position;
    int has_nan = 0;
    if (task->units)
        for (int64_t l = 0; l < lanes; l++) to[l] = task->units[at + l];
    else if (lanes == LANES)
        for (int l = 0; l < LANES; l++) {
            to[l] = activation(task->x[at + l] * 4096);
            has_nan |= task->x[at + l] != task->x[at + l];
        }
    else
        for (int64_t l = 0; l < lanes; l++) {
            to[l] = activation(task->x[at + l] * 4096);
            has_nan |= task->x[at + l] != task->x[at + l];
        }
    return has_nan;
}

/* Compute the gated product of the halves of wide [2 C][GROUP] for one channel at LANES positions. */
INLINE int gate_halves(const struct task *task, const int *wide, int64_t channel, int64_t position, int *to) {
    const int *value = wide + channel * GROUP + position, *gate = value + task->second.in_channels * GROUP;
    double slope = task->slope; /* a local variable: loads under a condition are not vectorized */
    for (int l = 0; l < LANES; l++) {
        double g = gate[l], leaky = g * slope;
        to[l] = activation((double)value[l] * (g < 0 ? leaky : g) * (1.0 / 4096));
    }
    return 0;
}

/* Pack inputs, or, given `wide`, gated products, into panels. Return the largest |H|, with AMX the bits of all
 * magnitudes; or 2^30, which is too large for any layer, if an input is NaN. */
INLINE int pack(const struct task *task, const int *wide, int64_t start, int64_t count, int *panels) {
    int size = 0, has_nan = 0;
    int64_t channels = wide ? task->second.in_channels : task->first.in_channels;
    int64_t together = uses_amx ? 4 : 2, end = uses_amx ? blocks(channels, DEPTH) * DEPTH : channels;
    for (int64_t p = 0; p < count; p += LANES) {
        int64_t lanes = count - p < LANES ? count - p : LANES;
        for (int64_t k = 0; k < end; k += together) {
            int values[4][LANES] = {{0}};
            for (int64_t j = 0; j < together && k + j < channels; j++)
                has_nan |= wide ? gate_halves(task, wide, k + j, p, values[j])
                                : read_input(task, k + j, start + p, lanes, values[j]);
#if AMX
            if (uses_amx) {
                char *tile = (char *)panels + (p / SIDE * (end / DEPTH) + k / DEPTH) * DIGITS * TILE_BYTES;
                size |= split_bytes(values, tile + k % DEPTH / 4 * DEPTH);
                continue;
            }
#endif
            int high = split(values[0], values[1], panels);
            size = high > size ? high : size;
            panels += 2 * LANES;
        }
    }
    return has_nan ? 1 << 30 : size;
}

/* Whether the sums of a layer fit 32 bits. `high` is what packing returned. */
INLINE int sums_fit(const struct layer *layer, int high) {
    return high < 1 << 30 && (uses_amx ? layer->in_channels <= 16000 : high <= layer->max_high);
}

/* Write `count` positions of the output. */
static void write_output(const struct task *task, const int *result, int64_t out_channels, int64_t start,
                         int64_t count) {
    double slope = task->slope;
    for (int64_t o = 0; o < out_channels; o++, result += GROUP) {
        int64_t at = o * task->positions + start;
        if (!task->out)
            for (int64_t l = 0; l < count; l++) {
                int leaky = activation(result[l] * slope);
                task->out_units[at + l] = result[l] < 0 ? leaky : result[l];
            }
        else if (task->added)
            for (int64_t l = 0; l < count; l++) task->out[at + l] = task->added[at + l] + result[l] * (1.0 / 4096);
        else
            for (int64_t l = 0; l < count; l++) task->out[at + l] = result[l] * (1.0 / 4096);
    }
}

static void *run_task(void *argument) {
    struct task *task = argument;
    const struct layer *first = &task->first, *second = &task->second;
    int64_t unit = uses_amx ? DEPTH : 2, width = first->out_channels;
    int64_t channels = blocks(first->in_channels, unit) * unit;
    if (task->gated) {
        int64_t between = blocks(second->in_channels, unit) * unit;
        channels = channels > between ? channels : between;
        width = width > second->out_channels ? width : second->out_channels;
    }
    int *panels = aligned_alloc(64, sizeof(int) * GROUP * (channels + width));
    if (!panels) {
        __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    int *result = panels + GROUP * channels;
#if AMX
    if (uses_amx) configure_tiles();
#endif
    while (!__atomic_load_n(&task->failed, __ATOMIC_RELAXED)) {
        int64_t start = __atomic_fetch_add(&task->next, GROUP, __ATOMIC_RELAXED);
        if (start >= task->positions) break;
        int64_t count = task->positions - start < GROUP ? task->positions - start : GROUP;
        int high = pack(task, 0, start, count, panels);
        int fits = sums_fit(first, high);
        if (fits) apply_layer(first, panels, count, high, result);
        if (fits && task->gated) {
            high = pack(task, result, start, count, panels);
            fits = sums_fit(second, high);
            if (fits) apply_layer(second, panels, count, high, result);
        }
        if (fits)
            write_output(task, result, task->gated ? second->out_channels : first->out_channels, start, count);
        else
            __atomic_store_n(&task->failed, 1, __ATOMIC_RELAXED);
    }
#if AMX
    if (uses_amx) _tile_release();
#endif
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
