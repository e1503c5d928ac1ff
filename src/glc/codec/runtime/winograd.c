/* 3x3 convolutions in float32 by Winograd's F(6x6, 3x3): 64 products where 36 outputs take 324 (Lavin and Gray, 2016).
 *
 * Maps lie in channels-last memory. For some tiles at a time (a tile: 6x6 outputs, from the 8x8 inputs around them)
 *
 *     inputs  --input8 twice-->  v [64][tiles][I]      stays in the L2 cache
 *     v x u   --product------->  m [64][tiles][WIDE]   for WIDE channels of the output after the other
 *     m       --output6 twice->  outputs, with bias, set or added
 *
 * so that nothing but inputs, outputs and the transformed weights u passes through memory. Vectors run over
 * channels; they are those of the GNU dialect, which gcc and clang turn into what the processor has.
 */

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12 /* tiles of a product, held in registers with WIDE channels of the output */
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

/* Numbers of channels are multiples of LANES, that of tiles in memory is one of ROWS. */
long glc_wide(void) { return WIDE; }

/* Multiples of 4096 bytes between the points would put all of them into one set of the L1 cache. */
INLINE long input_step(long tiles, long ins) { return tiles * ins + LANES; }
INLINE long output_step(long tiles) { return tiles * WIDE + LANES; }
long glc_floats(long tiles, long ins) { return POINTS * (input_step(tiles, ins) + output_step(tiles)); }

/* B^T d for F(6, 3) at the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity. */
INLINE void input8(const vec *d, vec *o, long step) {
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

/* A^T m: row k holds the k-th powers of the points. */
INLINE void output6(const vec *m, vec *o, long step) {
    vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4], f = m[5] + m[6], g = m[5] - m[6];
    o[0] = m[0] + a + c + f;
    o[step] = b + 2.0f * e + 0.5f * g;
    o[2 * step] = a + 4.0f * c + 0.25f * f;
    o[3 * step] = b + 8.0f * e + 0.125f * g;
    o[4 * step] = a + 16.0f * c + 0.0625f * f;
    o[5 * step] = m[7] + b + 32.0f * e + 0.03125f * g;
}

/* G k: each row the powers of a point, scaled so that A^T [(G k) (B^T d)] is the convolution. */
INLINE void points8(const vec *k, vec *o, long step) {
    vec a = (-2.f / 9) * (k[0] + k[2]), b = (-2.f / 9) * k[1];
    vec c = (1.f / 90) * k[0] + (2.f / 45) * k[2], d = (1.f / 45) * k[1];
    vec e = (32.f / 45) * k[0] + (8.f / 45) * k[2], f = (16.f / 45) * k[1];
    o[0] = k[0];
    o[step] = a + b;
    o[2 * step] = a - b;
    o[3 * step] = c + d;
    o[4 * step] = c - d;
    o[5 * step] = e + f;
    o[6 * step] = e - f;
    o[7 * step] = k[2];
}

/* Transform weights w [outs][ins][3][3], of the given strides, to u [outs / WIDE, rounded up][POINTS][ins][WIDE]:
 * its blocks of WIDE outputs from `first` to `end`. */
void glc_weights(const float *w, const long *strides, long outs, long ins, long first, long end, float *u) {
    enum { SOME = 8 }; /* inputs whose results are put in their 64 places together */
    for (long o = first * WIDE; o < end * WIDE; o += LANES)
        for (long i = 0; i < ins; i += SOME) {
            vec made[POINTS][SOME];
            long count = ins - i < SOME ? ins - i : SOME;
            for (long n = 0; n < count; n++) {
                vec taps[9], half[3 * INPUT];
                for (int t = 0; t < 9; t++) {
                    const float *from = w + o * strides[0] + (i + n) * strides[1] + t / 3 * strides[2] + t % 3 * strides[3];
                    for (int l = 0; l < LANES; l++) taps[t][l] = o + l < outs ? from[l * strides[0]] : 0;
                }
                for (int y = 0; y < 3; y++) points8(taps + 3 * y, half + y, 3);
                for (int b = 0; b < INPUT; b++) points8(half + 3 * b, &made[b][n], INPUT * SOME);
            }
            float *to = u + ((o / WIDE) * POINTS * ins + i) * WIDE + o % WIDE;
            for (int p = 0; p < POINTS; p++)
                for (long n = 0; n < count; n++) *(vec *)(to + (p * ins + n) * WIDE) = made[p][n];
        }
}

/* m [ROWS][WIDE] = v [ROWS][ins] x u [ins][WIDE], of it the first `count` vectors; count is known where it is called. */
INLINE void product(const float *v, const float *u, float *m, long ins, int count, const float *next) {
    vec sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < count; j++) sums[r][j] = (vec){0};
    const float *thirds[ROWS / 3]; /* of three rows each, which is as far as an address can count in steps of ins */
    for (int r = 0; r < ROWS / 3; r++) thirds[r] = v + 3 * r * ins;
    for (long k = 0; k < ins; k++) {
        vec w[VECTORS];
        for (int j = 0; j < count; j++) w[j] = *(const vec *)(u + k * WIDE + j * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < count; j++) sums[r][j] += thirds[r / 3][r % 3 * ins] * w[j];
        for (int r = 0; r < ROWS / 3; r++) thirds[r]++;
        __builtin_prefetch(next + k * LANES);
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < count; j++) *(vec *)(m + r * WIDE + j * LANES) = sums[r][j];
}

static void products(const float *v, const float *u, float *m, long ins, long tiles, long count, int vectors) {
    for (int p = 0; p < POINTS; p++)
        for (long t = 0; t < count; t += ROWS) {
            const float *from = v + p * input_step(tiles, ins) + t * ins, *weights = u + p * ins * WIDE;
            const float *next = t + ROWS < count ? from + ROWS * ins : v + (p + 1) * input_step(tiles, ins);
            float *to = m + p * output_step(tiles) + t * WIDE;
            if (vectors == VECTORS)
                product(from, weights, to, ins, VECTORS, next);
            else /* the last channels of a layer whose number is no multiple of WIDE */
                product(from, weights, to, ins, 1, next);
        }
}

struct row_tile {
    const float *x; /* `given` rows of the input, from `first` on */
    long first, given;
    long height, width; /* of the input as it is convolved: doubled, that is, where it is to be doubled */
    long halves;        /* 1 where each of its values stands for two by two, else 0 */
    long ins;
    long start, rows; /* of the output */
    float *out;       /* its first of these rows, from the first wanted channel on */
    long row, pixel;  /* steps between the output's rows and pixels */
    long outs;        /* channels wanted */
};

/* For the mirror of this structure in winograd.py. */
long glc_sizeof_row_tile(void) { return sizeof(struct row_tile); }

/* v of one tile, whose first output is at a row (from tile->start on) and a column. Zeros stand for what lies beyond
 * the input, and for rows that were not given since only outputs that are not wanted see them. */
static void input_tile(const struct row_tile *tile, long row, long column, float *v, long step) {
    long ins = tile->ins, pitch = (tile->width >> tile->halves) * ins;
    long top = tile->start + row - 1, left = column - 1;
    int inside = top >= 0 && left >= 0 && top + INPUT <= tile->height && left + INPUT <= tile->width;
    const float *rows[INPUT];
    for (int a = 0; a < INPUT; a++) {
        long y = top + a, row = (y >> tile->halves) - tile->first;
        rows[a] = y >= 0 && y < tile->height && row < tile->given ? tile->x + row * pitch : 0;
        inside = inside && rows[a];
    }
    for (long c = 0; c < ins; c += LANES) {
        vec half[POINTS];
        for (int b = 0; b < INPUT; b++) {
            vec d[INPUT];
            long x = left + b, at = (x >> tile->halves) * ins + c;
            if (inside)
                for (int a = 0; a < INPUT; a++) d[a] = *(const vec *)(rows[a] + at);
            else
                for (int a = 0; a < INPUT; a++)
                    d[a] = rows[a] && x >= 0 && x < tile->width ? *(const vec *)(rows[a] + at) : (vec){0};
            input8(d, half + b, INPUT);
        }
        for (int a = 0; a < INPUT; a++) {
            vec o[INPUT];
            input8(half + a * INPUT, o, 1);
            for (int b = 0; b < INPUT; b++) *(vec *)(v + (a * INPUT + b) * step + c) = o[b];
        }
    }
}

/* The outputs of one tile, LANES channels of them. */
INLINE void output_tile(const struct row_tile *tile, long row, long column, const float *m, long step, vec bias,
                        float *out, int add) {
    long down = tile->rows - row < TILE ? tile->rows - row : TILE;
    long across = tile->width - column < TILE ? tile->width - column : TILE;
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
            vec *to = (vec *)(out + (row + a) * tile->row + (column + b) * tile->pixel);
            *to = add ? *to + o[b] + bias : o[b] + bias;
        }
    }
}

/* Convolve a band. u and bias (or none) begin at the first channel wanted; memory is of glc_floats(tiles, ins) floats. */
void glc_convolve(const struct row_tile *tile, const float *u, const float *bias, int add, long tiles, float *memory) {
    long ins = tile->ins, across = (tile->width + TILE - 1) / TILE;
    long all = across * ((tile->rows + TILE - 1) / TILE);
    float *v = memory, *m = memory + POINTS * input_step(tiles, ins);
    for (long first = 0; first < all; first += tiles) {
        long count = all - first < tiles ? all - first : tiles;
        for (long t = 0; t < count; t++)
            input_tile(tile, (first + t) / across * TILE, (first + t) % across * TILE, v + t * ins,
                       input_step(tiles, ins));
        for (long o = 0; o < tile->outs; o += WIDE) {
            int vectors = tile->outs - o < WIDE ? (int)((tile->outs - o) / LANES) : VECTORS;
            products(v, u + o * POINTS * ins, m, ins, tiles, count, vectors > 1 ? VECTORS : 1);
            for (long t = 0; t < count; t++)
                for (int j = 0; j < vectors; j++)
                    output_tile(tile, (first + t) / across * TILE, (first + t) % across * TILE,
                                m + t * WIDE + j * LANES, output_step(tiles),
                                bias ? *(const vec *)(bias + o + j * LANES) : (vec){0}, tile->out + o + j * LANES, add);
        }
    }
}

typedef int ivec __attribute__((vector_size(4 * LANES)));

INLINE vec choose(ivec which, vec a, vec b) { return (vec)((which & (ivec)a) | (~which & (ivec)b)); }

/* x / (1 + exp(-x)), with the exponential of Cephes' expf: errors of some units in the last place. */
INLINE vec swish(vec x) {
    vec y = -x;
    y = choose(y < -87.0f, (vec){0} - 87.0f, y);
    y = choose(y > 88.0f, (vec){0} + 88.0f, y);
    vec n = (y * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded: 1.5 * 2^23 leaves no room for a fraction */
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

/* out = x * scale + shift, by channel, then swish if it is wanted; pixels of `channels` values each, side by side. */
void glc_normalize(const float *x, long pixels, long channels, const float *scale, const float *shift, int swished,
                   float *out) {
    for (long i = 0; i < pixels; i++, x += channels, out += channels)
        for (long c = 0; c < channels; c += LANES) {
            vec y = *(const vec *)(x + c) * *(const vec *)(scale + c) + *(const vec *)(shift + c);
            *(vec *)(out + c) = swished ? swish(y) : y;
        }
}
