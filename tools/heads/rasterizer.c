/* EWA splatting with front-to-back alpha compositing, forward and backward, in float32.

   The arithmetic is that of splat_enhancer.gaussians.rasterizer: a variance of 0.3 px^2 is added to
   every projected Gaussian, alpha is at most 0.99, and a contribution below 1/255 is left out.
   Gaussians are drawn one after the other in depth order, each over the rows of its ellipse. The
   backward pass runs in the same order: what lies behind a Gaussian is the whole picture less what
   was drawn up to it. Rows are worked on in blocks of 8 pixels; what lies beyond a row's end has
   weight 0, so every plane needs PADDING more floats after its last one. */
#include <math.h>

#define MIN_ALPHA (1.0f / 255.0f)
#define MAX_ALPHA 0.99f
#define LOW_PASS 0.3f
#define WIDTH 8 /* of a block; PADDING in rasterizer.py is as large */

typedef float Block __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int Mask __attribute__((vector_size(4 * WIDTH)));
static const Block STEPS = {0, 1, 2, 3, 4, 5, 6, 7};

typedef struct {
    int width, height, channels;
    float focal, rotation[9], position[3];
} Camera;

typedef struct {
    float local[3], m[6], u[6]; /* m = jacobian * rotation (2 x 3), u = m * axes (2 x 3) */
    float x, y, a, b, c, slant, bend, reach, opacity; /* a, b, c: inverse covariance */
    int top, bottom;
} Splat;

static int project(const Camera *cam, const float *mean, const float *axes, float opacity, Splat *s) {
    const float *r = cam->rotation;
    float d[3] = {mean[0] - cam->position[0], mean[1] - cam->position[1], mean[2] - cam->position[2]};
    for (int i = 0; i < 3; i++) s->local[i] = r[3 * i] * d[0] + r[3 * i + 1] * d[1] + r[3 * i + 2] * d[2];
    float depth = -s->local[2];
    if (!(depth > 1e-3f) || !(opacity > MIN_ALPHA)) return 0;
    float scale = cam->focal / depth, jx = scale * s->local[0] / depth, jy = -scale * s->local[1] / depth;
    for (int k = 0; k < 3; k++) {
        s->m[k] = scale * r[k] + jx * r[6 + k];
        s->m[3 + k] = -scale * r[3 + k] + jy * r[6 + k];
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 3; k++)
            s->u[3 * i + k] = s->m[3 * i] * axes[k] + s->m[3 * i + 1] * axes[3 + k] + s->m[3 * i + 2] * axes[6 + k];
    const float *u = s->u;
    float xx = u[0] * u[0] + u[1] * u[1] + u[2] * u[2] + LOW_PASS;
    float yy = u[3] * u[3] + u[4] * u[4] + u[5] * u[5] + LOW_PASS;
    float xy = u[0] * u[3] + u[1] * u[4] + u[2] * u[5];
    float det = xx * yy - xy * xy;
    if (!(det > 1e-12f) || !isfinite(det)) return 0;
    s->a = yy / det, s->b = -xy / det, s->c = xx / det;
    s->x = 0.5f * cam->width + scale * s->local[0];
    s->y = 0.5f * cam->height - scale * s->local[1];
    s->slant = s->b / s->a, s->bend = s->c - s->b * s->slant, s->opacity = opacity;
    s->reach = 2 * logf(opacity / MIN_ALPHA); /* a squared Mahalanobis distance */
    float half = sqrtf(s->reach * yy);
    if (!(s->y + half > 0) || !(s->y - half < cam->height)) return 0;
    s->top = (int)fmaxf(0, ceilf(s->y - half - 0.5f));
    s->bottom = (int)fminf(cam->height - 1, floorf(s->y + half - 0.5f));
    return 1;
}

/* First pixel and count of the row that the ellipse covers. */
static int row_span(const Camera *cam, const Splat *s, float dy, int *first) {
    float inside = s->reach - s->bend * dy * dy;
    if (!(inside > 0)) return 0;
    float middle = s->x - s->slant * dy - 0.5f, half = sqrtf(inside / s->a);
    float low = fmaxf(0, ceilf(middle - half)), high = fminf(cam->width - 1, floorf(middle + half));
    *first = (int)low;
    return high < low ? 0 : (int)(high - low) + 1;
}

/* Alpha of 8 pixels whose first is dx, dy from the centre; 0 from pixel number `left` on.
   2 to the power of x is made of its whole part and a polynomial, to 2e-7. */
static inline Block alpha_at(const Splat *s, float dx, float dy, int left) {
    const float bits = -0.72134752f; /* -1/2 / log 2 */
    Block x = STEPS + dx, power = (s->a * x + 2 * s->b * dy) * x + s->c * dy * dy;
    power = power * bits;
    Mask usable = (power > -100.0f) & (STEPS < (float)left);
    power = (Block)((Mask)power & usable & (power < 0.0f));
    Mask whole = __builtin_convertvector(power, Mask) - 1;
    Block f = power - __builtin_convertvector(whole, Block), p = 1.8775767e-3f * f + 8.9893397e-3f;
    p = p * f + 5.5826318e-2f;
    p = p * f + 2.4015361e-1f;
    p = p * f + 6.9315308e-1f;
    p = p * f + 9.9999994e-1f;
    Block alpha = s->opacity * p * (Block)((whole + 127) << 23);
    return (Block)((Mask)alpha & usable & (alpha >= MIN_ALPHA));
}

static inline Block at_most(Block value, float limit) {
    Mask below = value < limit;
    return (Block)(((Mask)value & below) | ((Mask)(value * 0 + limit) & ~below));
}

static inline float sum(Block value) {
    float total = 0;
    for (int i = 0; i < WIDTH; i++) total += value[i];
    return total;
}

/* image: channels x height x width, holds zeros; light: height x width, holds ones. */
void forward(const Camera *cam, int count, const long *order, const float *means, const float *axes,
             const float *colors, const float *opacities, float *image, float *light) {
    int width = cam->width, channels = cam->channels;
    long plane = (long)width * cam->height;
    Splat s;
    for (int n = 0; n < count; n++) {
        long g = order[n];
        if (!project(cam, means + 3 * g, axes + 9 * g, opacities[g], &s)) continue;
        const float *color = colors + channels * g;
        for (int row = s.top; row <= s.bottom; row++) {
            float dy = row + 0.5f - s.y;
            int first, many = row_span(cam, &s, dy, &first);
            for (int i = 0; i < many; i += WIDTH) {
                long at = (long)row * width + first + i;
                Block alpha = alpha_at(&s, first + i + 0.5f - s.x, dy, many - i);
                Block t = *(Block *)(light + at), weight = t * at_most(alpha, MAX_ALPHA);
                *(Block *)(light + at) = t - weight;
                for (int k = 0; k < channels; k++) {
                    Block *out = (Block *)(image + k * plane + at);
                    *out += weight * color[k];
                }
            }
        }
    }
}

/* out (2 x 3) = m (2 x 3) times the transpose of a (3 x 3). */
static void times_transposed(const float *m, const float *a, float *out) {
    for (int i = 0; i < 6; i++) {
        const float *row = m + i / 3 * 3, *column = a + i % 3 * 3;
        out[i] = row[0] * column[0] + row[1] * column[1] + row[2] * column[2];
    }
}

/* Of three channels. total: height x width, holds the sum over channels of grad * image with its
   background; light: holds ones; the four outputs hold zeros. */
void backward(const Camera *cam, int count, const long *order, const float *means, const float *axes,
              const float *colors, const float *opacities, const float *grad, float *total, float *light,
              float *d_means, float *d_axes, float *d_colors, float *d_opacities) {
    int width = cam->width;
    long plane = (long)width * cam->height;
    const float *r = cam->rotation;
    Splat s;
    for (int n = 0; n < count; n++) {
        long g = order[n];
        if (!project(cam, means + 3 * g, axes + 9 * g, opacities[g], &s)) continue;
        const float *color = colors + 3 * g;
        Block d_red = {0}, d_green = {0}, d_blue = {0};
        Block so = {0}, sx_ = {0}, sy_ = {0}, sxx_ = {0}, sxy_ = {0}, syy_ = {0};
        for (int row = s.top; row <= s.bottom; row++) {
            float dy = row + 0.5f - s.y;
            int first, many = row_span(cam, &s, dy, &first);
            for (int i = 0; i < many; i += WIDTH) {
                long at = (long)row * width + first + i;
                float dx = first + i + 0.5f - s.x;
                Block alpha = alpha_at(&s, dx, dy, many - i), clamped = at_most(alpha, MAX_ALPHA);
                Block red = *(const Block *)(grad + at), green = *(const Block *)(grad + plane + at);
                Block blue = *(const Block *)(grad + 2 * plane + at);
                Block toward = red * color[0] + green * color[1] + blue * color[2];
                Block t = *(Block *)(light + at), weight = t * clamped;
                Block rest = *(Block *)(total + at) - weight * toward;
                *(Block *)(total + at) = rest;
                *(Block *)(light + at) = t - weight;
                Block slope = (t * toward - rest / (1 - clamped)) * alpha;
                slope = (Block)((Mask)slope & (alpha <= MAX_ALPHA));
                Block x = STEPS + dx;
                so += slope, sx_ += slope * x, sy_ += slope * dy;
                sxx_ += slope * x * x, sxy_ += slope * x * dy, syy_ += slope * (dy * dy);
                d_red += weight * red, d_green += weight * green, d_blue += weight * blue;
            }
        }
        d_colors[3 * g] = sum(d_red), d_colors[3 * g + 1] = sum(d_green), d_colors[3 * g + 2] = sum(d_blue);
        d_opacities[g] = sum(so) / s.opacity;
        float sx = sum(sx_), sy = sum(sy_), sxx = sum(sxx_), sxy = sum(sxy_), syy = sum(syy_);
        float gx = s.a * sx + s.b * sy, gy = s.b * sx + s.c * sy; /* of the centre */
        /* of the covariance: K G K / 2, G the sums, K the inverse covariance; doubled for u */
        float h0 = s.a * sxx + s.b * sxy, h1 = s.a * sxy + s.b * syy;
        float h2 = s.b * sxx + s.c * sxy, h3 = s.b * sxy + s.c * syy;
        float xx = h0 * s.a + h1 * s.b, xy = h0 * s.b + h1 * s.c, yy = h2 * s.b + h3 * s.c;
        float du[6], dm[6], dj[6], dl[3];
        for (int k = 0; k < 3; k++) {
            du[k] = xx * s.u[k] + xy * s.u[3 + k];
            du[3 + k] = xy * s.u[k] + yy * s.u[3 + k];
        }
        const float *ax = axes + 9 * g;
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < 3; k++) d_axes[9 * g + 3 * i + k] = s.m[i] * du[k] + s.m[3 + i] * du[3 + k];
        times_transposed(du, ax, dm);
        times_transposed(dm, r, dj);
        float lx = s.local[0], ly = s.local[1], depth = -s.local[2], scale = cam->focal / depth, near = scale / depth;
        dl[0] = gx * scale + dj[2] * near;
        dl[1] = -gy * scale - dj[5] * near;
        dl[2] = near * (dj[0] - dj[4] + gx * lx - gy * ly) + 2 * near / depth * (dj[2] * lx - dj[5] * ly);
        for (int k = 0; k < 3; k++)
            d_means[3 * g + k] = r[k] * dl[0] + r[3 + k] * dl[1] + r[6 + k] * dl[2];
    }
}
