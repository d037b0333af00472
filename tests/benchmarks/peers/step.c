/* The step of the default level in plain C, as the limit of what a machine can do with it.

   One channel, one step ahead: distances to 4096 lags at four scales and the five nearest blocks at
   three, on every fourth sample the same for means of four; a square-root RLS of 96 lags and two of
   18 numbers; one layer of attention over 128 cached keys; attention over 175 remembered errors.
   The small rest (moments, gains, glitches, seasons) is left out: this is a limit, not a twin.

     gcc -O3 -march=native -ffast-math -shared -fPIC -o step.so step.c -lm */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PHASES 16
#define LAGS 4096
#define BLOCKS (LAGS / PHASES)
#define NEAREST 5
#define LONG 96
#define JOINT 18
#define DIM 32
#define HEADS 4
#define EACH (DIM / HEADS)
#define WINDOW 128
#define HIDDEN (2 * DIM)
#define FAR (4 * LAGS)
#define KEY 14
#define ASKED 175

typedef struct { /* what is remembered at one rate */
    float ring[PHASES][2 * BLOCKS];
    float far[4][PHASES][BLOCKS];
} memory;

typedef struct {
    memory fine, coarse;
    float root[LONG * LONG], slow[JOINT * JOINT], fast[JOINT * JOINT];
    float weights[LONG], past[LONG], sum;
    float keys[2 * WINDOW][DIM], values[2 * WINDOW][DIM];
    int8_t asked[FAR][KEY], errors[FAR][2];
    int32_t count;
} stream;

typedef struct {
    float query[DIM][DIM], key[DIM][DIM], value[DIM][DIM], out[DIM][DIM];
    float up[DIM][HIDDEN], down[HIDDEN][DIM], embed[2][DIM], head[DIM];
} weights;

long bytes_of_stream(void) { return sizeof(stream); }
long bytes_of_weights(void) { return sizeof(weights); }

static float compare(memory *m, int scales, int32_t count, float x, int32_t *lag) {
    static const float rate[4] = {1 / 3.f, 1 / 12.f, 1 / 48.f, 1 / 8192.f};
    static const float most[4] = {100, 100, 100, 9};
    int at = count % LAGS;
    m->ring[at % PHASES][at / PHASES] = m->ring[at % PHASES][at / PHASES + BLOCKS] = x;
    float least[4][BLOCKS];
    for (int s = 0; s < scales; s++)
        for (int b = 0; b < BLOCKS; b++) least[s][b] = 1e30f;
    for (int j = 0; j < PHASES; j++) {
        int back = (count - 1 - j + LAGS) % LAGS;
        const float *then = m->ring[back % PHASES] + back / PHASES + 1;
        for (int s = 0; s < scales; s++) {
            float *d = m->far[s][j], r = rate[s], cut = most[s], *l = least[s];
            for (int b = 0; b < BLOCKS; b++) {
                float apart = (then[b] - x) * (then[b] - x);
                apart = apart < cut ? apart : cut;
                d[b] += r * (apart - d[b]);
                l[b] = d[b] < l[b] ? d[b] : l[b];
            }
        }
    }
    float total = 0;
    for (int s = 0; s < 3; s++)
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

static float encode(stream *s, const weights *w, float x, float left) {
    float token[DIM], key[DIM], value[DIM], query[DIM], mixed[DIM] = {0}, out[DIM], up[HIDDEN];
    for (int d = 0; d < DIM; d++) token[d] = x * w->embed[0][d] + left * w->embed[1][d];
    through(token, &w->key[0][0], DIM, DIM, key);
    through(token, &w->value[0][0], DIM, DIM, value);
    through(token, &w->query[0][0], DIM, DIM, query);
    int at = s->count % WINDOW;
    memcpy(s->keys[at], key, sizeof key), memcpy(s->keys[at + WINDOW], key, sizeof key);
    memcpy(s->values[at], value, sizeof value), memcpy(s->values[at + WINDOW], value, sizeof value);
    for (int h = 0; h < HEADS; h++) {
        float weight[WINDOW], most = -1e30f, total = 0;
        for (int t = 0; t < WINDOW; t++) {
            float logit = -0.1f * (WINDOW - 1 - t);
            for (int e = 0; e < EACH; e++) logit += query[h * EACH + e] * s->keys[at + 1 + t][h * EACH + e];
            weight[t] = logit;
            most = logit > most ? logit : most;
        }
        for (int t = 0; t < WINDOW; t++) total += weight[t] = expf(weight[t] - most);
        for (int t = 0; t < WINDOW; t++)
            for (int e = 0; e < EACH; e++)
                mixed[h * EACH + e] += weight[t] / total * s->values[at + 1 + t][h * EACH + e];
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
        int lag = k < 3 * NEAREST ? near[k] : 24 * (k - 3 * NEAREST + 1);
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
    int32_t near[3 * NEAREST], coarse[3 * NEAREST], n = ++s->count;
    float gain[LONG], small[LONG], row[JOINT], foreseen = 0;
    float strange = compare(&s->fine, 4, n, x, near);
    s->sum += x;
    if (n % 4 == 3) strange += compare(&s->coarse, 3, n / 4, s->sum / 4, coarse), s->sum = 0;
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
