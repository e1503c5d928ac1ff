/* Operations of a training step that PyTorch computes in many passes over memory, with gradients, in one or two.
 *
 * Maps are rows of C channels (channels-last), float32 or bfloat16; C is a multiple of LANES; sums are float32. Rows
 * are divided among the threads in equal parts, so sums over rows depend on the number of threads and on nothing
 * else. Vectors run over channels; they are GNU vector extensions, as in winograd.c.
 */

#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct fused_task {
    const void *x, *other; /* maps [rows][channels]; other: of glc_distance only */
    const void *gradient;  /* of the result: [rows][channels] of glc_norm, [rows] of glc_distance; NULL: forward */
    const float *weight, *bias; /* [channels]; bias: of glc_norm only */
    void *out;             /* the result, or the gradient of x */
    float *sums; /* backward of glc_norm: [parts][4][channels], gradients of weight and bias, and memory for a row */
    int64_t rows, channels, parts, half, swish; /* half: maps are bfloat16 */
    float eps;
    int64_t next; /* the next part that no thread has taken */
};

int64_t glc_sizeof_fused_task(void) { return sizeof(struct fused_task); }

INLINE ivec choose(ivec which, ivec a, ivec b) { return (which & a) | (~which & b); }

INLINE vec load(const void *at, int64_t i, int half) {
    if (!half) return *(const vec *)((const float *)at + i);
    return (vec)(__builtin_convertvector(*(const hvec *)((const uint16_t *)at + i), uvec) << 16);
}

INLINE void store(void *at, int64_t i, vec v, int half) {
    if (!half) {
        *(vec *)((float *)at + i) = v;
        return;
    }
    uvec bits = (uvec)v;
    uvec rounded = bits + 0x7fff + ((bits >> 16) & 1);
    /* Rounding would turn some NaN into a number. */
    rounded = (uvec)choose((ivec)(v != v), (ivec)(bits | 0x400000), (ivec)rounded);
    *(hvec *)((uint16_t *)at + i) = __builtin_convertvector(rounded >> 16, hvec);
}

/* 1 / (1 + exp(-x)), with exp as in Cephes' expf: errors of a few units in the last place. */
INLINE vec sigmoid(vec x) {
    vec y = -x;
    y = (vec)choose(y < -87.0f, (ivec)((vec){0} - 87.0f), (ivec)y);
    y = (vec)choose(y > 88.0f, (ivec)((vec){0} + 88.0f), (ivec)y);
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
    return 1.0f / (1.0f + p * (vec)(bits << 23));
}

INLINE float total(vec v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* Root-mean-square normalisation over channels, then optionally swish:
 *
 *     n = x / sqrt(mean(x^2) + eps)      t = n * weight + bias      y = t * sigmoid(t), or t
 */
INLINE float inverse_norm(const struct fused_task *task, int64_t row, int half) {
    vec squares = {0};
    for (int64_t c = 0; c < task->channels; c += LANES) {
        vec x = load(task->x, row + c, half);
        squares += x * x;
    }
    return 1.0f / __builtin_sqrtf(total(squares) / task->channels + task->eps);
}

INLINE void forward(const struct fused_task *task, int64_t row, int half, int swish) {
    float scale = inverse_norm(task, row, half);
    for (int64_t c = 0; c < task->channels; c += LANES) {
        vec t = load(task->x, row + c, half) * scale * *(const vec *)(task->weight + c) + *(const vec *)(task->bias + c);
        if (swish) t *= sigmoid(t);
        store(task->out, row + c, t, half);
    }
}

/* With u = dL/dn = dL/dt * weight:  dL/dx = (u - n mean(u n)) / sqrt(mean(x^2) + eps). `kept` holds u and n. */
INLINE void backward(const struct fused_task *task, int64_t row, int half, int swish, float *sums, float *kept) {
    float scale = inverse_norm(task, row, half);
    int64_t channels = task->channels;
    vec products = {0};
    for (int64_t c = 0; c < channels; c += LANES) {
        vec weight = *(const vec *)(task->weight + c);
        vec n = load(task->x, row + c, half) * scale, g = load(task->gradient, row + c, half);
        if (swish) {
            vec t = n * weight + *(const vec *)(task->bias + c), s = sigmoid(t);
            g *= s * (1.0f + t * (1.0f - s));
        }
        *(vec *)(sums + c) += g * n;
        *(vec *)(sums + channels + c) += g;
        vec u = g * weight;
        products += u * n;
        *(vec *)(kept + c) = u;
        *(vec *)(kept + channels + c) = n;
    }
    float mean = total(products) / channels;
    for (int64_t c = 0; c < channels; c += LANES)
        store(task->out, row + c, (*(vec *)(kept + c) - mean * *(vec *)(kept + channels + c)) * scale, half);
}

INLINE void norm_part(struct fused_task *task, int64_t first, int64_t end, int64_t part, int half, int swish) {
    int64_t channels = task->channels;
    float *sums = task->gradient ? task->sums + part * 4 * channels : 0;
    for (int64_t row = first; row < end; row++) {
        if (task->gradient) backward(task, row * channels, half, swish, sums, sums + 2 * channels);
        else forward(task, row * channels, half, swish);
    }
}

/* The distance of LPIPS between two rows a (x) and b (other): sum(weight (a / |a| - b / |b|)^2), with eps added to each
 * length. Its gradient with respect to a, with u = dL/d(a / |a|):  (u - a sum(u a) / (|a| (|a| + eps))) / (|a| + eps).
 * It is 0 at a = 0, where it is not defined.
 */
INLINE void distance(const struct fused_task *task, int64_t row, int half) {
    int64_t channels = task->channels, first = row * channels;
    vec squares_a = {0}, squares_b = {0};
    for (int64_t c = 0; c < channels; c += LANES) {
        vec a = load(task->x, first + c, half), b = load(task->other, first + c, half);
        squares_a += a * a;
        squares_b += b * b;
    }
    float length = __builtin_sqrtf(total(squares_a));
    float scale_a = 1.0f / (length + task->eps), scale_b = 1.0f / (__builtin_sqrtf(total(squares_b)) + task->eps);
    vec sum = {0};
    if (!task->gradient) {
        for (int64_t c = 0; c < channels; c += LANES) {
            vec d = load(task->x, first + c, half) * scale_a - load(task->other, first + c, half) * scale_b;
            sum += *(const vec *)(task->weight + c) * d * d;
        }
        ((float *)task->out)[row] = total(sum);
        return;
    }
    float gradient = 2.0f * ((const float *)task->gradient)[row];
    for (int64_t c = 0; c < channels; c += LANES) {
        vec a = load(task->x, first + c, half);
        vec d = a * scale_a - load(task->other, first + c, half) * scale_b;
        sum += *(const vec *)(task->weight + c) * d * a;
    }
    float along = length > 0 ? gradient * total(sum) * scale_a / length : 0, outer = length > 0 ? scale_a : 0;
    for (int64_t c = 0; c < channels; c += LANES) {
        vec a = load(task->x, first + c, half);
        vec d = a * scale_a - load(task->other, first + c, half) * scale_b;
        store(task->out, first + c, (gradient * *(const vec *)(task->weight + c) * d - along * a) * outer, half);
    }
}

INLINE void distance_part(struct fused_task *task, int64_t first, int64_t end, int half) {
    for (int64_t row = first; row < end; row++) distance(task, row, half);
}

/* Return whether a part is left, and its rows. */
INLINE int take(struct fused_task *task, int64_t *part, int64_t *first, int64_t *end) {
    *part = __atomic_fetch_add(&task->next, 1, __ATOMIC_RELAXED);
    *first = task->rows * *part / task->parts;
    *end = task->rows * (*part + 1) / task->parts;
    return *part < task->parts;
}

/* Compute parts until none is left. Any number of threads may call these two with one task. */
void glc_norm(void *given) {
    struct fused_task *task = given;
    for (int64_t part, first, end; take(task, &part, &first, &end);) {
        if (task->half && task->swish) norm_part(task, first, end, part, 1, 1);
        else if (task->half) norm_part(task, first, end, part, 1, 0);
        else if (task->swish) norm_part(task, first, end, part, 0, 1);
        else norm_part(task, first, end, part, 0, 0);
    }
}

void glc_distance(void *given) {
    struct fused_task *task = given;
    for (int64_t part, first, end; take(task, &part, &first, &end);) {
        if (task->half) distance_part(task, first, end, 1);
        else distance_part(task, first, end, 0);
    }
}
