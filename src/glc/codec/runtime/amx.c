/* Convolutions by matrices of bfloat16 (AMX), nearly as accurate as in float32.
 *
 * Inputs x and weights w are split into sums of two bfloat16: x = x1 + x2. Three of the four products, x1 w1 + x1 w2 +
 * x2 w1, with sums in float32, keep 16 of float32's 24 bits (Henry, Tang and Heinecke, "Leveraging the bfloat16
 * Artificial Intelligence Datatype For Higher-Precision Computations", 2019).
 *
 * Maps are channels-last. An output is computed in strips of columns, so that what is in work stays in the L2 cache.
 * The rows of the input that an output row needs are kept in a ring of split rows:
 *
 *     x [rows][pixels][I]  --split-->  ring [row][I / DEPTH][x1, x2][pixel][DEPTH], zero-padded
 *     ring x w             --products of 32 pixels and 32 output channels-->  outputs, with bias, overwritten or added
 */

#include <stdint.h>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <string.h>

#define LANES 16
#define BLOCK 16 /* pixels or output channels of a tile register */
#define DEPTH 32 /* input channels of a tile register */
#define WIDE (2 * BLOCK)
#define TILE_BYTES (2 * BLOCK * DEPTH)
#define INLINE static inline __attribute__((always_inline))

struct conv_task {
    const float *x; /* `given` rows of the input, from row `first` on */
    int64_t first, given;
    int64_t height, width; /* of the input, after upsampling */
    int64_t shift;         /* 1 to upsample the input by two, else 0 */
    int64_t in_channels;
    int64_t start, rows;              /* of the output */
    float *out;                       /* the first of these rows, at the first channel to write */
    int64_t row_stride, pixel_stride; /* of the output, in floats */
    int64_t out_channels;             /* channels to write, a multiple of LANES */
    int64_t side, stride;             /* 1x1, 3x3, or 3x3 of stride 2, padded at the right and lower edge only */
};

int64_t glc_sizeof_conv_task(void) { return sizeof(struct conv_task); }

INLINE int64_t steps_of(int64_t in_channels) { return (in_channels + DEPTH - 1) / DEPTH; }
INLINE int64_t output_width(const struct conv_task *task) { return task->width / task->stride; }
INLINE int64_t padding(const struct conv_task *task) { return task->side == 3 && task->stride == 1; }

#define STRIP 192

/* Columns of a strip, in blocks of WIDE. */
INLINE int64_t strip_width(const struct conv_task *task) {
    int64_t width = (output_width(task) + WIDE - 1) / WIDE * WIDE;
    return width < STRIP ? width : STRIP;
}

/* Pixels of a row of the ring. */
INLINE int64_t ring_width(const struct conv_task *task) { return (strip_width(task) - 1) * task->stride + task->side; }
INLINE int64_t row_bytes(const struct conv_task *task) {
    return steps_of(task->in_channels) * 2 * ring_width(task) * 2 * DEPTH;
}

/* Output rows computed together: weights are read once for all of them. More of them do not fit the L2 cache. */
INLINE int64_t rows_together(const struct conv_task *task) {
    int64_t rows = 600000 / (row_bytes(task) * task->stride);
    return rows < 1 ? 1 : rows > task->rows ? task->rows : rows;
}
INLINE int64_t ring_rows(const struct conv_task *task) { return (rows_together(task) - 1) * task->stride + task->side; }

/* Bytes of memory that a convolution needs. */
int64_t glc_bytes(const struct conv_task *task) { return ring_rows(task) * row_bytes(task); }

/* Bytes of WIDE output channels of packed weights. */
int64_t glc_block_bytes(int64_t in_channels, int64_t side) {
    return side * side * steps_of(in_channels) * 4 * TILE_BYTES;
}

/* x = first + second + error */
INLINE void split(__m512 x, __m256i *first, __m256i *second) {
    *first = (__m256i)_mm512_cvtneps_pbh(x);
    *second = (__m256i)_mm512_cvtneps_pbh(x - (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(*first), 16));
}

/* Pack weights [O][I][side][side] of the given strides, in floats, for the blocks of WIDE outputs from `first` to `end`
 * (exclusive): [O / WIDE][side][side][I / DEPTH][w1, w2][WIDE / BLOCK][DEPTH / 2][BLOCK][2]. */
void glc_weights(const float *w, const int64_t *strides, int64_t out_channels, int64_t in_channels, int64_t side,
                 int64_t first, int64_t end, char *to) {
    to += first * glc_block_bytes(in_channels, side);
    __m512i step = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                      _mm512_set1_epi32((int)strides[0]));
    for (int64_t block = first * WIDE; block < end * WIDE; block += WIDE)
        for (int64_t tap = 0; tap < side * side; tap++)
            for (int64_t k = 0; k < steps_of(in_channels) * DEPTH; k += DEPTH, to += 4 * TILE_BYTES)
                for (int64_t o = block; o < block + WIDE; o += BLOCK)
                    for (int64_t i = k; i < k + DEPTH; i += 2) {
                        __m256i parts[2][2];
                        for (int64_t j = 0; j < 2; j++) {
                            __m512 value = _mm512_setzero_ps();
                            if (i + j < in_channels && o < out_channels)
                                value = _mm512_i32gather_ps(step,
                                                            w + o * strides[0] + (i + j) * strides[1] +
                                                                tap / side * strides[2] + tap % side * strides[3],
                                                            4);
                            split(value, &parts[j][0], &parts[j][1]);
                        }
                        for (int part = 0; part < 2; part++)
                            _mm512_storeu_si512(
                                to + part * 2 * TILE_BYTES + (o - block) / BLOCK * TILE_BYTES + (i - k) / 2 * 4 * BLOCK,
                                _mm512_or_si512(_mm512_cvtepu16_epi32(parts[0][part]),
                                                _mm512_slli_epi32(_mm512_cvtepu16_epi32(parts[1][part]), 16)));
                    }
}

/* Split pixels of row y of the input, after upsampling, from column `left` on, into a row of the ring. Beyond the input
 * it is zero; so are rows that were not given: only outputs that are not written depend on them. */
static void split_row(const struct conv_task *task, int64_t y, int64_t left, char *to) {
    int64_t in_channels = task->in_channels, pixels = ring_width(task), row = (y >> task->shift) - task->first;
    if (y < 0 || y >= task->height || row < 0 || row >= task->given) {
        memset(to, 0, row_bytes(task));
        return;
    }
    const float *from = task->x + row * (task->width >> task->shift) * in_channels;
    for (int64_t k = 0; k < in_channels; k += DEPTH, to += 2 * pixels * 2 * DEPTH)
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t c = 0; c < DEPTH; c += LANES) {
                int64_t x = left + p;
                __m256i first = _mm256_setzero_si256(), second = first;
                if (x >= 0 && x < task->width && k + c < in_channels)
                    split(_mm512_loadu_ps(from + (x >> task->shift) * in_channels + k + c), &first, &second);
                _mm256_store_si256((__m256i *)(to + (p * DEPTH + c) * 2), first);
                _mm256_store_si256((__m256i *)(to + ((pixels + p) * DEPTH + c) * 2), second);
            }
}

/* sums [WIDE pixels][WIDE outputs]; the second half of the pixels only if `both`. `rows` are those of the ring. */
INLINE void products(const struct conv_task *task, const char *const *rows, int64_t pixel, const char *w, int both,
                     float *sums) {
    int64_t pixels = ring_width(task), steps = steps_of(task->in_channels), pitch = task->stride * 2 * DEPTH;
    _tile_zero(0);
    _tile_zero(1);
    if (both) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t dy = 0; dy < task->side; dy++)
        for (int64_t dx = 0; dx < task->side; dx++) {
            const char *a = rows[dy] + (pixel * task->stride + dx) * 2 * DEPTH;
            for (int64_t k = 0; k < steps; k++, a += 2 * pixels * 2 * DEPTH, w += 4 * TILE_BYTES) {
                const char *second = a + pixels * 2 * DEPTH;
                _tile_loadd(4, second, pitch); /* x2 */
                if (both) _tile_loadd(5, second + BLOCK * pitch, pitch);
                _tile_loadd(6, w, 2 * DEPTH); /* w1 */
                _tile_loadd(7, w + TILE_BYTES, 2 * DEPTH);
#define PRODUCTS                                                                                                       \
    _tile_dpbf16ps(0, 4, 6);                                                                                           \
    _tile_dpbf16ps(1, 4, 7);                                                                                           \
    if (both) {                                                                                                        \
        _tile_dpbf16ps(2, 5, 6);                                                                                       \
        _tile_dpbf16ps(3, 5, 7);                                                                                       \
    }
                PRODUCTS
                _tile_loadd(4, a, pitch); /* x1 */
                if (both) _tile_loadd(5, a + BLOCK * pitch, pitch);
                PRODUCTS
                _tile_loadd(6, w + 2 * TILE_BYTES, 2 * DEPTH); /* w2 */
                _tile_loadd(7, w + 3 * TILE_BYTES, 2 * DEPTH);
                PRODUCTS
#undef PRODUCTS
            }
        }
    _tile_stored(0, sums, 4 * WIDE);
    _tile_stored(1, sums + BLOCK, 4 * WIDE);
    if (both) {
        _tile_stored(2, sums + BLOCK * WIDE, 4 * WIDE);
        _tile_stored(3, sums + BLOCK * WIDE + BLOCK, 4 * WIDE);
    }
}

/* Convolve rows at the columns of the output from `column` on. */
static void convolve_strip(const struct conv_task *task, const char *weights, const float *bias, int add,
                           int64_t column, char *memory) {
    int64_t together = rows_together(task), ring = ring_rows(task);
    int64_t strip = strip_width(task), rest = output_width(task) - column, width = rest < strip ? rest : strip;
    int64_t top = task->start * task->stride - padding(task), left = column * task->stride - padding(task);
    int64_t ready = 0; /* rows split so far, from `top` on */
    for (int64_t r = 0; r < task->rows; r += together) {
        int64_t count = task->rows - r < together ? task->rows - r : together;
        int64_t needed = (r + count - 1) * task->stride + task->side;
        for (; ready < needed; ready++) split_row(task, top + ready, left, memory + ready % ring * row_bytes(task));
        for (int64_t o = 0; o < task->out_channels; o += WIDE) {
            const char *w = weights + o / WIDE * glc_block_bytes(task->in_channels, task->side);
            int64_t channels = task->out_channels - o < WIDE ? task->out_channels - o : WIDE;
            for (int64_t y = r; y < r + count; y++) {
                const char *rows[3];
                for (int64_t dy = 0; dy < task->side; dy++)
                    rows[dy] = memory + (y * task->stride + dy) % ring * row_bytes(task);
                for (int64_t pixel = 0; pixel < width; pixel += WIDE) {
                    float sums[WIDE * WIDE] __attribute__((aligned(64)));
                    int64_t here = width - pixel < WIDE ? width - pixel : WIDE;
                    if (here > BLOCK)
                        products(task, rows, pixel, w, 1, sums);
                    else
                        products(task, rows, pixel, w, 0, sums);
                    float *to = task->out + y * task->row_stride + (column + pixel) * task->pixel_stride + o;
                    for (int64_t p = 0; p < here; p++, to += task->pixel_stride)
                        for (int64_t c = 0; c < channels; c += LANES) {
                            __m512 sum = _mm512_load_ps(sums + p * WIDE + c);
                            if (bias) sum += _mm512_loadu_ps(bias + o + c);
                            if (add) sum += _mm512_loadu_ps(to + c);
                            _mm512_storeu_ps(to + c, sum);
                        }
                }
            }
        }
    }
}

/* Convolve rows. Weights and bias (may be null) begin at the first channel to write, a multiple of WIDE; memory holds
 * glc_bytes(task) bytes, aligned to 64. */
void glc_convolve(const struct conv_task *task, const char *weights, const float *bias, int add, char *memory) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.rows[t] = BLOCK, config.row_bytes[t] = 2 * DEPTH;
    _tile_loadconfig(&config);
    for (int64_t column = 0; column < output_width(task); column += strip_width(task))
        convolve_strip(task, weights, bias, add, column, memory);
    _tile_release();
}
#endif
