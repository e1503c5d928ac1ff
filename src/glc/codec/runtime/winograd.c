/* 3x3 convolutions in float32 by Winograd's F(6x6, 3x3): 64 products per 36 outputs instead of 324.
 * Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: Y = A^T [(G g G^T) . (B^T d B)] A.
 *
 * Maps are channels-last. A tile is 6x6 outputs, computed from the 8x8 inputs around them. For a group of tiles:
 *
 *     inputs d  --input8 twice-->  v [64][tiles][I]      stays in the L2 cache
 *     v x u     --product------->  m [64][tiles][WIDE]   one block of WIDE output channels after the other
 *     m         --output6 twice->  outputs, with bias, overwritten or added
 *
 * Only inputs, outputs and the transformed weights u pass through main memory. Vectors run over channels; they are
 * GNU vector extensions, which gcc and clang compile to the processor's instructions.
 */

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12 /* tiles of a product: their sums of WIDE output channels stay in registers */
#define VECTORS 2
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 6
#define VECTORS 2
#else
#define LANES 4
#define ROWS 6
#define VECTORS 4
#endif
#define WIDE (LANES * VECTORS)
#define TILE 6
#define INPUT 8
#define POINTS (INPUT * INPUT)
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Channel counts are multiples of LANES, the number of tiles is a multiple of ROWS. */
int64_t glc_wide(void) { return WIDE; }

/* The LANES extra floats avoid strides that are multiples of 4096 bytes, which map to one set of the L1 cache. */
INLINE int64_t input_step(int64_t tiles, int64_t in_channels) { return tiles * in_channels + LANES; }
INLINE int64_t output_step(int64_t tiles) { return tiles * WIDE + LANES; }
int64_t glc_floats(int64_t tiles, int64_t in_channels) {
    return POINTS * (input_step(tiles, in_channels) + output_step(tiles));
}

/* B^T d for F(6, 3) with the interpolation points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity:
 *
 *           1     0  -21/4     0   21/4     0    -1    0
 *           0     1      1 -17/4  -17/4     1     1    0
 *           0    -1      1  17/4  -17/4    -1     1    0
 *     B^T = 0   1/2    1/4  -5/2   -5/4     2     1    0
 *           0  -1/2    1/4   5/2   -5/4    -2     1    0
 *           0     2      4  -5/2     -5   1/2     1    0
 *           0    -2      4   5/2     -5  -1/2     1    0
 *           0    -1      0  21/4      0 -21/4     0    1
 */
INLINE void input8(const vec *d, vec *o, int64_t step) {
    vec a = d[2] + d[6] - 4.25f * d[4], b = d[1] + d[5] - 4.25f * d[3];
    vec c = d[6] + 0.25f * d[2] - 1.25f * d[4], e = 0.5f * d[1] - 2.5f * d[3] + 2.0f * d[5];
    vec f = d[6] + 4.0f * d[2] - 5.0f * d[4], g = 2.0f * d[1] - 2.5f * d[3] + 0.5f * d[5];
    o[0] = d[0] - d[6] + 5.25f * (d[4] - d[2]);
    o[step] = a + b;
    o[2 * step] = a - b;
    o[3 * step] = c + e;
    o[4 * step] = c - e;
    o[5 * step] = f + g;
    o[6 * step] = f - g;
    o[7 * step] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
}

/* A^T m; row k holds the k-th powers of the points:
 *
 *           1  1   1   1    1     1      1  0
 *           0  1  -1   2   -2   1/2   -1/2  0
 *     A^T = 0  1   1   4    4   1/4    1/4  0
 *           0  1  -1   8   -8   1/8   -1/8  0
 *           0  1   1  16   16  1/16   1/16  0
 *           0  1  -1  32  -32  1/32  -1/32  1
 */
INLINE void output6(const vec *m, vec *o, int64_t step) {
    vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4], f = m[5] + m[6], g = m[5] - m[6];
    o[0] = m[0] + a + c + f;
    o[step] = b + 2.0f * e + 0.5f * g;
    o[2 * step] = a + 4.0f * c + 0.25f * f;
    o[3 * step] = b + 8.0f * e + 0.125f * g;
    o[4 * step] = a + 16.0f * c + 0.0625f * f;
    o[5 * step] = m[7] + b + 32.0f * e + 0.03125f * g;
}

/* G g; each row holds the powers 0 to 2 of a point, scaled:
 *
 *             1       0      0
 *          -2/9    -2/9   -2/9
 *          -2/9     2/9   -2/9
 *     G =  1/90    1/45   2/45
 *          1/90   -1/45   2/45
 *         32/45   16/45   8/45
 *         32/45  -16/45   8/45
 *             0       0      1
 */
INLINE void weights8(const vec *g, vec *o, int64_t step) {
    vec a = (-2.f / 9) * (g[0] + g[2]), b = (-2.f / 9) * g[1];
    vec c = (1.f / 90) * g[0] + (2.f / 45) * g[2], d = (1.f / 45) * g[1];
    vec e = (32.f / 45) * g[0] + (8.f / 45) * g[2], f = (16.f / 45) * g[1];
    o[0] = g[0];
    o[step] = a + b;
    o[2 * step] = a - b;
    o[3 * step] = c + d;
    o[4 * step] = c - d;
    o[5 * step] = e + f;
    o[6 * step] = e - f;
    o[7 * step] = g[2];
}

/* Transform weights w [O][I][3][3] of the given strides to u [O / WIDE, rounded up][POINTS][I][WIDE], for
 * the blocks of WIDE outputs from `first` to `end` (exclusive). */
void glc_weights(const float *w, const int64_t *strides, int64_t out_channels, int64_t in_channels, int64_t first,
                 int64_t end, float *u) {
    enum { INPUTS = 8 }; /* input channels transformed before their results are stored */
    for (int64_t o = first * WIDE; o < end * WIDE; o += LANES)
        for (int64_t i = 0; i < in_channels; i += INPUTS) {
            vec transformed[POINTS][INPUTS];
            int64_t count = in_channels - i < INPUTS ? in_channels - i : INPUTS;
            for (int64_t n = 0; n < count; n++) {
                vec taps[9], half[3 * INPUT];
                for (int t = 0; t < 9; t++) {
                    const float *from =
                        w + o * strides[0] + (i + n) * strides[1] + t / 3 * strides[2] + t % 3 * strides[3];
                    for (int l = 0; l < LANES; l++) taps[t][l] = o + l < out_channels ? from[l * strides[0]] : 0;
                }
                for (int y = 0; y < 3; y++) weights8(taps + 3 * y, half + y, 3);
                for (int b = 0; b < INPUT; b++) weights8(half + 3 * b, &transformed[b][n], INPUT * INPUTS);
            }
            float *to = u + ((o / WIDE) * POINTS * in_channels + i) * WIDE + o % WIDE;
            for (int p = 0; p < POINTS; p++)
                for (int64_t n = 0; n < count; n++) *(vec *)(to + (p * in_channels + n) * WIDE) = transformed[p][n];
        }
}

/* m [ROWS][WIDE] = v [ROWS][I] x u [I][WIDE], its first `count` vectors; count is constant after inlining. */
INLINE void product(const float *v, const float *u, float *m, int64_t in_channels, int count, const float *next) {
    vec sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < count; j++) sums[r][j] = (vec){0};
    const float *thirds[ROWS / 3]; /* one base per three rows: x86 addresses reach steps of I and 2 I floats */
    for (int r = 0; r < ROWS / 3; r++) thirds[r] = v + 3 * r * in_channels;
    for (int64_t k = 0; k < in_channels; k++) {
        vec w[VECTORS];
        for (int j = 0; j < count; j++) w[j] = *(const vec *)(u + k * WIDE + j * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < count; j++) sums[r][j] += thirds[r / 3][r % 3 * in_channels] * w[j];
        for (int r = 0; r < ROWS / 3; r++) thirds[r]++;
        __builtin_prefetch(next + k * LANES);
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < count; j++) *(vec *)(m + r * WIDE + j * LANES) = sums[r][j];
}

static void products(const float *v, const float *u, float *m, int64_t in_channels, int64_t tiles, int64_t count,
                     int vectors) {
    for (int p = 0; p < POINTS; p++)
        for (int64_t t = 0; t < count; t += ROWS) {
            const float *from = v + p * input_step(tiles, in_channels) + t * in_channels,
                        *weights = u + p * in_channels * WIDE;
            const float *next =
                t + ROWS < count ? from + ROWS * in_channels : v + (p + 1) * input_step(tiles, in_channels);
            float *to = m + p * output_step(tiles) + t * WIDE;
            if (vectors == VECTORS)
                product(from, weights, to, in_channels, VECTORS, next);
            else /* the last channels, if their number is not a multiple of WIDE */
                product(from, weights, to, in_channels, 1, next);
        }
}

struct conv_task {
    const float *x; /* `given` rows of the input, from row `first` on */
    int64_t first, given;
    int64_t height, width; /* of the input, after upsampling */
    int64_t shift;         /* 1 to upsample the input by two, else 0 */
    int64_t in_channels;
    int64_t start, rows;              /* of the output */
    float *out;                       /* the first of these rows, at the first channel to write */
    int64_t row_stride, pixel_stride; /* of the output, in floats */
    int64_t out_channels;             /* channels to write */
};

/* Checked at load against the mirror of this structure in winograd.py. */
int64_t glc_sizeof_conv_task(void) { return sizeof(struct conv_task); }

/* Compute v of one tile, whose first output is at a row (counted from task->start) and a column. Beyond the input it
 * is zero. Rows that were not given are read as zero too: only outputs that are not written depend on them. */
static void input_tile(const struct conv_task *task, int64_t row, int64_t column, float *v, int64_t step) {
    int64_t in_channels = task->in_channels, pitch = (task->width >> task->shift) * in_channels;
    int64_t top = task->start + row - 1, left = column - 1;
    int inside = top >= 0 && left >= 0 && top + INPUT <= task->height && left + INPUT <= task->width;
    const float *rows[INPUT];
    for (int a = 0; a < INPUT; a++) {
        int64_t y = top + a, row = (y >> task->shift) - task->first;
        rows[a] = y >= 0 && y < task->height && row < task->given ? task->x + row * pitch : 0;
        inside = inside && rows[a];
    }
    for (int64_t c = 0; c < in_channels; c += LANES) {
        vec half[POINTS];
        for (int b = 0; b < INPUT; b++) {
            vec d[INPUT];
            int64_t x = left + b, at = (x >> task->shift) * in_channels + c;
            if (inside)
                for (int a = 0; a < INPUT; a++) d[a] = *(const vec *)(rows[a] + at);
            else
                for (int a = 0; a < INPUT; a++)
                    d[a] = rows[a] && x >= 0 && x < task->width ? *(const vec *)(rows[a] + at) : (vec){0};
            input8(d, half + b, INPUT);
        }
        for (int a = 0; a < INPUT; a++) {
            vec o[INPUT];
            input8(half + a * INPUT, o, 1);
            for (int b = 0; b < INPUT; b++) *(vec *)(v + (a * INPUT + b) * step + c) = o[b];
        }
    }
}

/* Compute the outputs of one tile, for LANES channels. */
INLINE void output_tile(const struct conv_task *task, int64_t row, int64_t column, const float *m, int64_t step,
                        vec bias, float *out, int add) {
    int64_t down = task->rows - row < TILE ? task->rows - row : TILE;
    int64_t across = task->width - column < TILE ? task->width - column : TILE;
    vec half[TILE * INPUT];
    for (int b = 0; b < INPUT; b++) {
        vec d[INPUT];
        for (int a = 0; a < INPUT; a++) d[a] = *(const vec *)(m + (a * INPUT + b) * step);
        output6(d, half + b, INPUT);
    }
    for (int a = 0; a < down; a++) {
        vec o[TILE];
        output6(half + a * INPUT, o, 1);
        for (int b = 0; b < across; b++) {
            vec *to = (vec *)(out + (row + a) * task->row_stride + (column + b) * task->pixel_stride);
            *to = add ? *to + o[b] + bias : o[b] + bias;
        }
    }
}

/* Convolve a row tile of a map. u and bias (may be null) begin at the first channel to write; memory holds
 * glc_floats(tiles, in_channels) floats. */
void glc_convolve(const struct conv_task *task, const float *u, const float *bias, int add, int64_t tiles,
                  float *memory) {
    int64_t in_channels = task->in_channels, across = (task->width + TILE - 1) / TILE;
    int64_t all = across * ((task->rows + TILE - 1) / TILE);
    float *v = memory, *m = memory + POINTS * input_step(tiles, in_channels);
    for (int64_t first = 0; first < all; first += tiles) {
        int64_t count = all - first < tiles ? all - first : tiles;
        for (int64_t t = 0; t < count; t++)
            input_tile(task, (first + t) / across * TILE, (first + t) % across * TILE, v + t * in_channels,
                       input_step(tiles, in_channels));
        for (int64_t o = 0; o < task->out_channels; o += WIDE) {
            int vectors = task->out_channels - o < WIDE ? (int)((task->out_channels - o) / LANES) : VECTORS;
            products(v, u + o * POINTS * in_channels, m, in_channels, tiles, count, vectors > 1 ? VECTORS : 1);
            for (int64_t t = 0; t < count; t++)
                for (int j = 0; j < vectors; j++)
                    output_tile(task, (first + t) / across * TILE, (first + t) % across * TILE,
                                m + t * WIDE + j * LANES, output_step(tiles),
                                bias ? *(const vec *)(bias + o + j * LANES) : (vec){0}, task->out + o + j * LANES, add);
        }
    }
}

typedef int ivec __attribute__((vector_size(4 * LANES)));

INLINE vec select_lanes(ivec which, vec a, vec b) { return (vec)((which & (ivec)a) | (~which & (ivec)b)); }

/* x / (1 + exp(-x)), with exp as in Cephes' expf: errors of a few units in the last place. */
INLINE vec swish(vec x) {
    vec y = -x;
    y = select_lanes(y < -87.0f, (vec){0} - 87.0f, y);
    y = select_lanes(y > 88.0f, (vec){0} + 88.0f, y);
    /* Rounds to an integer: at 1.5 * 2^23 the unit in the last place is 1. */
    vec n = (y * 1.44269504f + 12582912.0f) - 12582912.0f;
    vec r = y - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec bits = __builtin_convertvector(n, ivec) + 127;
    return x / (1.0f + p * (vec)(bits << 23));
}

/* out = x * scale + shift per channel, then swish if `swished`; x and out are [pixels][channels]. */
void glc_normalize(const float *x, int64_t pixels, int64_t channels, const float *scale, const float *shift,
                   int swished, float *out) {
    for (int64_t i = 0; i < pixels; i++, x += channels, out += channels)
        for (int64_t c = 0; c < channels; c += LANES) {
            vec y = *(const vec *)(x + c) * *(const vec *)(scale + c) + *(const vec *)(shift + c);
            *(vec *)(out + c) = swished ? swish(y) : y;
        }
}
