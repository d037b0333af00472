/* The step of the default level in plain C, as the limit of what a machine can do with it.

   One channel, one step ahead: distances to 4096 lags at three scales, in half precision, and the five
   nearest blocks at each, on every fourth sample the same for means of four; a fourth scale in single
   precision; a square-root RLS of 96 lags and two of 18 numbers; a gated delta layer; attention over
   175 remembered errors.
   The small rest (moments, gains, glitches, seasons) is left out: this is a limit, not a twin.

     gcc -O3 -march=native -ffast-math -shared -fPIC -o step.so step.c -lm */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#define PHASES 16
#define LAGS 4096
#define BLOCKS (LAGS / PHASES)
#define NEAREST 5
#define LONG 96
#define JOINT 18
#define DIM 32
#define HEADS 4
#define EACH (DIM / HEADS)
#define SCALES 3
#define HIDDEN (2 * DIM)
#define FAR (4 * LAGS)
#define KEY 14
#define ASKED 175

typedef struct { /* what is remembered at one rate */
    float ring[PHASES][2 * BLOCKS];
    _Float16 far[SCALES][PHASES][BLOCKS];
} memory;

typedef struct {
    memory fine, coarse;
    float season[PHASES][BLOCKS];
    float root[LONG * LONG], slow[JOINT * JOINT], fast[JOINT * JOINT];
    float weights[LONG], past[LONG], sum;
    float held[HEADS][EACH][EACH];
    int8_t asked[FAR][KEY], errors[FAR][2];
    int32_t count;
} stream;

typedef struct {
    float query[DIM][DIM], key[DIM][DIM], value[DIM][DIM], out[DIM][DIM];
    float gates[DIM][2 * HEADS], up[DIM][HIDDEN], down[HIDDEN][DIM], embed[2][DIM], head[DIM];
} weights;

long bytes_of_stream(void) { return sizeof(stream); }
long bytes_of_weights(void) { return sizeof(weights); }

/* Compilers do not make vectors of these by themselves yet. */
static void widen(const _Float16 *half, float *whole) {
#ifdef __F16C__
    for (int b = 0; b < BLOCKS; b += 8)
        _mm256_storeu_ps(whole + b, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + b))));
#else
    for (int b = 0; b < BLOCKS; b++) whole[b] = half[b];
#endif
}

static void narrow(const float *whole, _Float16 *half) {
#ifdef __F16C__
    for (int b = 0; b < BLOCKS; b += 8)
        _mm_storeu_si128((__m128i *)(half + b), _mm256_cvtps_ph(_mm256_loadu_ps(whole + b), 0));
#else
    for (int b = 0; b < BLOCKS; b++) half[b] = (_Float16)whole[b];
#endif
}

static float compare(memory *m, float (*season)[BLOCKS], int32_t count, float x, int32_t *lag) {
    static const float rate[SCALES] = {1 / 3.f, 1 / 12.f, 1 / 48.f};
    int at = count % LAGS;
    m->ring[at % PHASES][at / PHASES] = m->ring[at % PHASES][at / PHASES + BLOCKS] = x;
    float least[SCALES][BLOCKS];
    for (int s = 0; s < SCALES; s++)
        for (int b = 0; b < BLOCKS; b++) least[s][b] = 1e30f;
    for (int j = 0; j < PHASES; j++) {
        int back = (count - 1 - j + LAGS) % LAGS;
        const float *then = m->ring[back % PHASES] + back / PHASES + 1;
        float apart[BLOCKS], d[BLOCKS];
        for (int b = 0; b < BLOCKS; b++) {
            float square = (then[b] - x) * (then[b] - x);
            apart[b] = square < 100 ? square : 100;
        }
        for (int s = 0; s < SCALES; s++) {
            widen(m->far[s][j], d);
            for (int b = 0; b < BLOCKS; b++) {
                d[b] += rate[s] * (512 * apart[b] - d[b]);
                least[s][b] = d[b] < least[s][b] ? d[b] : least[s][b];
            }
            narrow(d, m->far[s][j]);
        }
        if (season)
            for (int b = 0; b < BLOCKS; b++)
                season[j][b] += ((apart[b] < 9 ? apart[b] : 9) - season[j][b]) / 8192.f;
    }
    float total = 0;
    for (int s = 0; s < SCALES; s++)
        for (int k = 0; k < NEAREST; k++) {
            float best = 1e30f;
            for (int b = 0; b < BLOCKS; b++) best = least[s][b] < best ? least[s][b] : best;
            int where = 0;
            while (where < BLOCKS - 1 && least[s][where] != best) where++;
            least[s][where] = 1e30f;
            lag[s * NEAREST + k] = PHASES * (BLOCKS - 1 - where) + 1;
            total += sqrtf(best);
        }
    return total;
}

static void rls(float *root, const float *x, int n, float forgetting, float *gain) {
    float a[LONG] = {0}, p[LONG];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) a[j] += x[i] * root[i * n + j];
    float inner = forgetting;
    for (int j = 0; j < n; j++) inner += a[j] * a[j];
    for (int i = 0; i < n; i++) {
        float sum = 0;
        for (int j = 0; j < n; j++) sum += root[i * n + j] * a[j];
        p[i] = sum;
        gain[i] = sum / inner;
    }
    float step = 1 / (inner + sqrtf(forgetting * inner)), grow = 1 / sqrtf(forgetting);
    for (int i = 0; i < n; i++) {
        float share = step * p[i];
        for (int j = 0; j < n; j++) root[i * n + j] = grow * (root[i * n + j] - share * a[j]);
    }
}

static void through(const float *x, const float *matrix, int n, int m, float *out) {
    memset(out, 0, m * sizeof(float));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) out[j] += x[i] * matrix[i * m + j];
}

static void unit(float *x) {
    float square = 1e-6f;
    for (int e = 0; e < EACH; e++) square += x[e] * x[e];
    for (int e = 0; e < EACH; e++) x[e] /= sqrtf(square);
}

static float encode(stream *s, const weights *w, float x, float left) {
    float token[DIM], key[DIM], value[DIM], query[DIM], gate[2 * HEADS], mixed[DIM], out[DIM];
    float up[HIDDEN];
    for (int d = 0; d < DIM; d++) token[d] = x * w->embed[0][d] + left * w->embed[1][d];
    through(token, &w->key[0][0], DIM, DIM, key);
    through(token, &w->value[0][0], DIM, DIM, value);
    through(token, &w->query[0][0], DIM, DIM, query);
    through(token, &w->gates[0][0], DIM, 2 * HEADS, gate);
    for (int h = 0; h < HEADS; h++) {
        float *k = key + h * EACH, *q = query + h * EACH;
        float share = 1 / (1 + expf(-gate[h])), stays = 1 / (1 + expf(gate[HEADS + h]));
        unit(k), unit(q);
        for (int i = 0; i < EACH; i++) {
            float *row = s->held[h][i], had = 0, sum = 0;
            for (int e = 0; e < EACH; e++) had += stays * row[e] * k[e];
            float write = share * (value[h * EACH + i] - had);
            for (int e = 0; e < EACH; e++) row[e] = stays * row[e] + write * k[e];
            for (int e = 0; e < EACH; e++) sum += row[e] * q[e];
            mixed[h * EACH + i] = sum;
        }
    }
    through(mixed, &w->out[0][0], DIM, DIM, out);
    for (int d = 0; d < DIM; d++) token[d] += out[d];
    through(token, &w->up[0][0], DIM, HIDDEN, up);
    for (int u = 0; u < HIDDEN; u++) up[u] = up[u] / (1 + expf(-1.702f * up[u]));
    through(up, &w->down[0][0], HIDDEN, DIM, out);
    float answer = 0;
    for (int d = 0; d < DIM; d++) answer += (token[d] + out[d]) * w->head[d];
    return answer;
}

static float recall(stream *s, const float *newest, const int32_t *near) {
    float logit[ASKED], most = -1e30f, total = 0, answer = 0;
    int at[ASKED];
    for (int k = 0; k < ASKED; k++) {
        int lag = k < SCALES * NEAREST ? near[k] : 24 * (k - SCALES * NEAREST + 1);
        at[k] = (s->count - lag + FAR) % FAR;
        float own = 0, unit = exp2f(s->asked[at[k]][KEY - 1] / 8.f);
        for (int i = 0; i < KEY - 1; i++) {
            float apart = s->asked[at[k]][i] * unit - newest[i];
            own += apart * apart;
        }
        logit[k] = -own - 1e-4f * lag;
        most = logit[k] > most ? logit[k] : most;
    }
    for (int k = 0; k < ASKED; k++) {
        float weight = expf(logit[k] - most);
        total += weight;
        answer += weight * s->errors[at[k]][0] * exp2f(s->errors[at[k]][1] / 8.f);
    }
    return answer / total;
}

static float one(stream *s, const weights *w, float x) {
    int32_t near[SCALES * NEAREST], coarse[SCALES * NEAREST], n = ++s->count;
    float gain[LONG], small[LONG], row[JOINT], foreseen = 0;
    float strange = compare(&s->fine, s->season, n, x, near);
    s->sum += x;
    if (n % 4 == 3) strange += compare(&s->coarse, NULL, n / 4, s->sum / 4, coarse), s->sum = 0;
    for (int i = 0; i < LONG; i++) foreseen += s->weights[i] * s->past[i];
    rls(s->root, s->past, LONG, 0.99995f, gain);
    for (int i = 0; i < LONG; i++) s->weights[i] += gain[i] * (x - foreseen);
    for (int i = 0; i < JOINT; i++) row[i] = s->past[LONG - 1 - i];
    rls(s->slow, row, JOINT, 0.9999f, small), rls(s->fast, row, JOINT, 0.999f, small);
    memmove(s->past, s->past + 1, (LONG - 1) * sizeof(float));
    s->past[LONG - 1] = x;
    int8_t *key = s->asked[n % FAR];
    for (int i = 0; i < KEY - 1; i++) key[i] = (int8_t)(30 * s->past[LONG - 1 - i]);
    key[KEY - 1] = -40;
    s->errors[n % FAR][0] = (int8_t)(20 * (x - foreseen)), s->errors[n % FAR][1] = -40;
    float left = x - foreseen;
    return strange + foreseen + encode(s, w, x, left) + recall(s, s->past + LONG - KEY, near);
}

void init(stream *s, int streams) {
    memset(s, 0, streams * sizeof(stream));
    for (int k = 0; k < streams; k++) {
        for (int i = 0; i < LONG; i++) s[k].root[i * LONG + i] = 1;
        for (int i = 0; i < JOINT; i++) s[k].slow[i * JOINT + i] = s[k].fast[i * JOINT + i] = 1;
    }
}

void run(stream *s, const weights *w, const int32_t *which, const float *x, float *out, int n) {
    for (int k = 0; k < n; k++) out[k] = one(s + which[k], w, x[k]);
}
