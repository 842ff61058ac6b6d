// 3x3 convolution (stride 1, padding 1) by Winograd's F(4x4, 3x3), and its two gradients, for training on a CPU.
//
// An image is cut into tiles of 4x4 outputs, each of which needs 6x6 inputs. Tile, filter and output gradient are
// transformed into 36 numbers per channel; then the convolution is 36 independent matrix products over the channels, with a
// quarter of a direct convolution's multiplications. Method: A. Lavin, S. Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2015. The interpolation points are 0, +-sqrt(1/2), +-sqrt(2) and infinity, which halve the rounding
// error of the usual 0, +-1, +-2 and infinity at no cost.
//
// Images are NHWC, float32 or bfloat16; weights are (O, 3, 3, I) float32; arithmetic is float32. Height and width are
// multiples of 4, channels of `winograd_channel_multiple()` and at most `MAX_CHANNELS`: the caller checks. An output is
// computed by one thread in an order that depends on the shape alone, so its bits do not depend on the number of threads.
//
// Threads come from the OpenMP library that the caller uses, through a pointer to its `GOMP_parallel`.

#include <atomic>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

using i64 = std::int64_t;
using bf16 = std::uint16_t;
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14; // 28 sums, 2 vectors of B and a broadcast fill 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, ROWS = 6; // 12 sums, 2 vectors of B and a broadcast fill 15 of 16
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 12; // 24 sums, 2 vectors of B and 4 of A fill 30 of 32
#else
#error "no vector instructions with fused multiply-add"
#endif
constexpr int VECTORS = 2, PANEL = VECTORS * LANES; // output channels of a micro-kernel
constexpr int GROUP = 16;                           // channels stored together in a row block
constexpr int LINE = 16;                            // floats of padding between planes, against conflicts in the cache
constexpr i64 MAX_CHANNELS = 4096;

// Measured on Zen 3 and Zen 4, whose second-level caches hold 512 KiB and 1 MiB.
constexpr i64 MANY_TILES = 2;       // per channel: with more, work is split by tiles; with fewer, by channels
constexpr i64 FEW_CHANNELS = 64;    // up to here a task has one row block of tiles, beyond it two (on AVX2: two and four)
constexpr i64 BLOCKS = ROWS < 8 ? 2 : 1;
constexpr i64 CHANNEL_BLOCK = 64;   // of a task, if work is split by channels
constexpr i64 DEPTH = 24;           // tiles whose products are summed in registers: more would round more
constexpr i64 GRADIENT_GROUPS = 16; // of tiles in the weight gradient, with few channels
constexpr i64 GRADIENT_FLOATS = 4 << 20; // that it transforms at a time, with many channels: 16 MiB

alignas(64) const float ZEROS[MAX_CHANNELS] = {};

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef std::uint32_t vec_bits __attribute__((vector_size(LANES * 4)));
typedef bf16 vec_half __attribute__((vector_size(LANES * 2)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec load(const float *p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

INLINE vec load(const bf16 *p) {
  vec_half h;
  std::memcpy(&h, p, sizeof h);
  return (vec)(__builtin_convertvector(h, vec_bits) << 16);
}

INLINE void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }

// Results bypass the cache: they are larger than it, and a plain store would first read their lines from memory.
INLINE void store_result(float *p, vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}

INLINE void store_result(bf16 *p, vec v) {
  vec_bits bits = (vec_bits)v;
  vec_bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vec_half half = __builtin_convertvector(v == v ? rounded : (vec_bits)(vec_bits{} + 0x7fc0), vec_half);
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i *)p, (__m256i)half);
#else
  std::memcpy(p, &half, sizeof half);
#endif
}

// ---- the transforms, in one dimension ------------------------------------------------------------------------------

constexpr float P = 0.70710678118654752f, Q = 1.41421356237309505f; // the points, whose squares are:
constexpr float P2 = 0.5f, Q2 = 2.0f;
constexpr float N0 = 1 / (P2 * Q2), NP = 1 / (2 * P2 * (P2 - Q2)), NQ = 1 / (2 * Q2 * (Q2 - P2));

struct InputTransform { // 6 inputs -> 6
  static constexpr int FROM = 6, TO = 6;
  INLINE void apply(const vec *d, vec *r) {
    vec ep = d[4] - Q2 * d[2], op = P * (d[3] - Q2 * d[1]);
    vec eq = d[4] - P2 * d[2], oq = Q * (d[3] - P2 * d[1]);
    r[0] = d[4] - (P2 + Q2) * d[2] + (P2 * Q2) * d[0];
    r[1] = ep + op, r[2] = ep - op, r[3] = eq + oq, r[4] = eq - oq;
    r[5] = d[5] - (P2 + Q2) * d[3] + (P2 * Q2) * d[1];
  }
};

struct OutputTransform { // 6 -> 4 outputs
  static constexpr int FROM = 6, TO = 4;
  INLINE void apply(const vec *m, vec *r) {
    vec sp = m[1] + m[2], dp = P * (m[1] - m[2]), sq = m[3] + m[4], dq = Q * (m[3] - m[4]);
    r[0] = m[0] + sp + sq, r[1] = dp + dq, r[2] = P2 * sp + Q2 * sq, r[3] = P2 * dp + Q2 * dq + m[5];
  }
};

struct OutputGradientTransform { // 4 -> 6: the transpose of OutputTransform
  static constexpr int FROM = 4, TO = 6;
  INLINE void apply(const vec *y, vec *r) {
    vec ep = y[0] + P2 * y[2], op = P * (y[1] + P2 * y[3]);
    vec eq = y[0] + Q2 * y[2], oq = Q * (y[1] + Q2 * y[3]);
    r[0] = y[0], r[1] = ep + op, r[2] = ep - op, r[3] = eq + oq, r[4] = eq - oq, r[5] = y[3];
  }
};

struct FilterTransform { // 3 weights -> 6
  static constexpr int FROM = 3, TO = 6;
  INLINE void apply(const vec *g, vec *r) {
    vec ep = NP * g[0] + (NP * P2) * g[2], op = (NP * P) * g[1];
    vec eq = NQ * g[0] + (NQ * Q2) * g[2], oq = (NQ * Q) * g[1];
    r[0] = N0 * g[0], r[1] = ep + op, r[2] = ep - op, r[3] = eq + oq, r[4] = eq - oq, r[5] = g[2];
  }
};

struct FilterGradientTransform { // 6 -> 3 weights: the transpose of FilterTransform
  static constexpr int FROM = 6, TO = 3;
  INLINE void apply(const vec *u, vec *r) {
    vec sp = u[1] + u[2], dp = u[1] - u[2], sq = u[3] + u[4], dq = u[3] - u[4];
    r[0] = N0 * u[0] + NP * sp + NQ * sq;
    r[1] = (NP * P) * dp + (NQ * Q) * dq;
    r[2] = (NP * P2) * sp + (NQ * Q2) * sq + u[5];
  }
};

// A transform in both dimensions: `get(i, j)` returns the vectors of a square, `put(i, j, v)` stores those of the result.
template <class Transform, class Get, class Put> INLINE void transform(Get get, Put put) {
  constexpr int FROM = Transform::FROM, TO = Transform::TO;
  vec half[TO][FROM];
  UNROLL for (int j = 0; j < FROM; ++j) {
    vec column[FROM], result[TO];
    UNROLL for (int i = 0; i < FROM; ++i) column[i] = get(i, j);
    Transform::apply(column, result);
    UNROLL for (int i = 0; i < TO; ++i) half[i][j] = result[i];
  }
  UNROLL for (int i = 0; i < TO; ++i) {
    vec result[TO];
    Transform::apply(half[i], result);
    UNROLL for (int j = 0; j < TO; ++j) put(i, j, result[j]);
  }
}

// ---- the matrix product --------------------------------------------------------------------------------------------

// C[M][PANEL] = A B, or C += A B. Element (i, k) of A is a[k / DEPTH * STEP + i * ROW + k % DEPTH * COLUMN]; B is [k][PANEL].
template <int M, int DEPTH, i64 STEP, i64 ROW, i64 COLUMN>
INLINE void multiply_block(const float *a, const float *b, float *c, i64 c_row, i64 depth, bool adds) {
  vec sum[M][VECTORS] = {};
  for (; depth > 0; depth -= DEPTH, a += STEP) {
    _Pragma("GCC unroll 4") for (int k = 0; k < DEPTH; ++k, b += PANEL) {
      vec right[VECTORS];
      UNROLL for (int v = 0; v < VECTORS; ++v) right[v] = load(b + v * LANES);
      UNROLL for (int i = 0; i < M; ++i) {
        UNROLL for (int v = 0; v < VECTORS; ++v) sum[i][v] += a[i * ROW + k * COLUMN] * right[v];
      }
    }
  }
  UNROLL for (int i = 0; i < M; ++i) {
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      float *p = c + i * c_row + v * LANES;
      store(p, adds ? load(p) + sum[i][v] : sum[i][v]);
    }
  }
}

// Tiles by channels: A consists of blocks of ROWS tiles, a block of groups of GROUP channels, a group is [tile][channel].
template <int M = ROWS>
void multiply_tiles(const float *a, const float *b, float *c, i64 c_row, i64 num_tiles, i64 depth) {
  for (; num_tiles >= M; num_tiles -= M, a += M == ROWS ? ROWS * depth : M * GROUP, c += M * c_row)
    multiply_block<M, GROUP, ROWS * GROUP, GROUP, 1>(a, b, c, c_row, depth, false);
  if constexpr (M > 1)
    if (num_tiles) multiply_tiles<M / 2>(a, b, c, c_row, num_tiles, depth);
}

// The sum over tiles of PANEL channels by PANEL channels: both are [tile][PANEL].
void multiply_panels(const float *a, const float *b, float *c, i64 num_tiles, bool adds) {
  constexpr int REST = PANEL % ROWS;
  int i = 0;
  for (; i + ROWS <= PANEL; i += ROWS)
    multiply_block<ROWS, 1, PANEL, 1, 0>(a + i, b, c + i * PANEL, PANEL, num_tiles, adds);
  if constexpr (REST > 0) multiply_block<REST, 1, PANEL, 1, 0>(a + i, b, c + i * PANEL, PANEL, num_tiles, adds);
}

// ---- a call --------------------------------------------------------------------------------------------------------

i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
i64 min(i64 a, i64 b) { return a < b ? a : b; }
i64 max(i64 a, i64 b) { return a > b ? a : b; }
i64 share(i64 all, i64 threads, i64 multiple) { return ceil_div(ceil_div(all, threads), multiple) * multiple; }

struct Shape {
  i64 images, height, width, in, out; // `in`: channels of the input; `out`: of the result or its gradient

  i64 tiles() const { return images * height * width / 16; }
  i64 tile_offset(i64 tile, i64 channels) const { // of its first output
    i64 across = width / 4, rest = tile % (height / 4 * across);
    return ((tile / (height / 4 * across) * height + rest / across * 4) * width + rest % across * 4) * channels;
  }
};

// 36 matrices of some tiles and channels, one after the other.
struct Planes {
  i64 tiles, channels;

  i64 plane() const { return ceil_div(tiles, ROWS) * ROWS * channels + LINE; }
  i64 size() const { return 36 * plane(); }
};

struct Team {
  Parallel start;
  unsigned threads;

  // Calls body(task, thread) for each task; tasks that run at the same time have different `thread` numbers.
  template <class Body> void run(i64 tasks, const Body &body) const {
    if (threads == 1) {
      for (i64 task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    struct Work {
      const Body &body;
      i64 tasks;
      std::atomic<i64> next_task{0}, next_thread{0};
    } work{body, tasks};
    start(
        [](void *pointer) {
          Work &work = *static_cast<Work *>(pointer);
          i64 thread = work.next_thread++;
          for (i64 task; (task = work.next_task++) < work.tasks;) work.body(task, thread);
#if defined(__AVX__)
          _mm_sfence();
#endif
        },
        &work, threads, 0);
  }
};

// Transform one tile's inputs; element (position, channel) goes to out + position * plane + place(channel).
template <class T, class Place>
INLINE void transform_input(const Shape &s, const T *x, i64 tile, float *out, i64 plane, Place place) {
  i64 across = s.width / 4, rest = tile % (s.height / 4 * across);
  i64 top = rest / across * 4 - 1, left = rest % across * 4 - 1;
  const T *image = x + tile / (s.height / 4 * across) * s.height * s.width * s.in;
  const T *pixel[6][6];
  for (i64 i = 0; i < 6; ++i)
    for (i64 j = 0; j < 6; ++j) {
      i64 row = top + i, column = left + j;
      bool is_inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
      pixel[i][j] = is_inside ? image + (row * s.width + column) * s.in : (const T *)ZEROS;
    }
  for (i64 c = 0; c < s.in; c += LANES) {
    float *to = out + place(c);
    transform<InputTransform>([&](int i, int j) { return load(pixel[i][j] + c); },
                              [&](int i, int j, vec v) { store(to + (6 * i + j) * plane, v); });
  }
}

template <class T> void input_to_blocks(const Shape &s, const T *x, i64 tile, i64 position, float *out, i64 plane) {
  float *block = out + position / ROWS * ROWS * s.in + position % ROWS * GROUP;
  transform_input(s, x, tile, block, plane, [](i64 c) { return c / GROUP * ROWS * GROUP + c % GROUP; });
}

template <class T>
void input_to_panels(const Shape &s, const T *x, i64 tile, float *out, i64 plane, i64 panel) {
  transform_input(s, x, tile, out, plane, [=](i64 c) { return c / PANEL * panel + c % PANEL; });
}

// Transform the filters from `in` channels to PANEL output channels from `first` on: U[36][in][PANEL].
// Rotated, for the input gradient: `out` is the weights' input channels, and the filters are turned by 180 degrees.
void transform_filters(const Shape &s, const float *w, bool rotated, i64 first, i64 from, i64 to, float *u, i64 plane) {
  for (i64 k = from; k < to; ++k)
    for (i64 lane = 0; lane < PANEL; lane += LANES) {
      float *out = u + k * PANEL + lane;
      auto get = [&](int i, int j) {
        if (rotated) return load(w + (k * 9 + 8 - (3 * i + j)) * s.out + first + lane);
        vec v;
        UNROLL for (int l = 0; l < LANES; ++l) v[l] = w[((first + lane + l) * 9 + 3 * i + j) * s.in + k];
        return v;
      };
      transform<FilterTransform>(get, [&](int i, int j, vec v) { store(out + (6 * i + j) * plane, v); });
    }
}

// Transform products M[36][position][channels] back into a tile's outputs, from output channel `first` on.
template <class T>
INLINE void transform_output(const Shape &s, const float *m, i64 plane, i64 channels, i64 tile, i64 first, T *y) {
  T *out = y + s.tile_offset(tile, s.out) + first;
  for (i64 c = 0; c < channels; c += LANES)
    transform<OutputTransform>(
        [&](int i, int j) { return load(m + (6 * i + j) * plane + c); },
        [&](int i, int j, vec v) { store_result(out + (i * s.width + j) * s.out + c, v); });
}

// ---- the convolution and its input gradient --------------------------------------------------------------------------

// How a call is split into tasks. By tiles: a task computes all channels of `tiles` tiles; filters are transformed before.
// By channels: a task transforms the filters of `channels` channels and computes these for all tiles; inputs are
// transformed before.
struct Cut {
  bool by_tiles;
  i64 tiles, channels;
};

struct Convolution {
  Shape s;
  Cut cut;

  Convolution(const Shape &shape, i64 threads) : s(shape) {
    i64 tiles = s.tiles(), widest = max(s.in, s.out);
    cut.by_tiles = tiles >= MANY_TILES * widest;
    i64 some_tiles = (widest <= FEW_CHANNELS ? 1 : 2) * BLOCKS * ROWS;
    cut.tiles = cut.by_tiles ? min(share(tiles, threads, ROWS), some_tiles) : tiles;
    cut.channels = cut.by_tiles ? s.out : min(share(s.out, threads, PANEL), CHANNEL_BLOCK);
  }

  Planes inputs() const { return {cut.tiles, s.in}; }
  i64 filters_plane() const { return s.in * cut.channels + LINE; }
  i64 products_row() const { return cut.channels + LINE; }
  i64 products_plane() const { return cut.tiles * products_row() + LINE; }
  i64 shared_size() const { return cut.by_tiles ? 36 * filters_plane() : inputs().size(); }
  i64 own_size() const { return (cut.by_tiles ? inputs().size() : 36 * filters_plane()) + 36 * products_plane(); }
  i64 scratch_size(i64 threads) const { return shared_size() + threads * own_size(); }

  template <class T> void run(const Team &team, bool rotated, const T *x, const float *w, T *y, float *scratch) const {
    const i64 plane = inputs().plane();
    float *shared = scratch;
    auto own = [=](i64 thread) { return scratch + shared_size() + thread * own_size(); };
    auto finish = [&](const float *v, const float *u, float *m, i64 tile, i64 num_tiles, i64 first, i64 num_channels) {
      for (i64 p = 0; p < 36; ++p)
        for (i64 c = 0; c < num_channels; c += PANEL)
          multiply_tiles(v + p * plane, u + p * filters_plane() + c * s.in, m + p * products_plane() + c,
                         products_row(), num_tiles, s.in);
      for (i64 t = 0; t < num_tiles; ++t)
        transform_output(s, m + t * products_row(), products_plane(), num_channels, tile + t, first, y);
    };
    if (cut.by_tiles) {
      const i64 pieces = s.in / GROUP;
      team.run(s.out / PANEL * pieces, [&](i64 task, i64) {
        i64 first = task / pieces * PANEL, from = task % pieces * GROUP;
        transform_filters(s, w, rotated, first, from, from + GROUP, shared + first * s.in, filters_plane());
      });
      team.run(ceil_div(s.tiles(), cut.tiles), [&](i64 task, i64 thread) {
        i64 tile = task * cut.tiles, num_tiles = min(cut.tiles, s.tiles() - tile);
        float *v = own(thread), *m = v + inputs().size();
        for (i64 t = 0; t < num_tiles; ++t) input_to_blocks(s, x, tile + t, t, v, plane);
        finish(v, shared, m, tile, num_tiles, 0, s.out);
      });
    } else {
      team.run(s.tiles(), [&](i64 tile, i64) { input_to_blocks(s, x, tile, tile, shared, plane); });
      team.run(ceil_div(s.out, cut.channels), [&](i64 task, i64 thread) {
        i64 first = task * cut.channels, num_channels = min(cut.channels, s.out - first);
        float *u = own(thread), *m = u + 36 * filters_plane();
        for (i64 c = 0; c < num_channels; c += PANEL)
          transform_filters(s, w, rotated, first + c, 0, s.in, u + c * s.in, filters_plane());
        finish(shared, u, m, 0, s.tiles(), first, num_channels);
      });
    }
  }
};

// ---- the weight gradient -----------------------------------------------------------------------------------------------

// Works in rounds of as many tiles as fit in a cache: inputs and output gradients are transformed, then their 36 products
// are added to sums, which are [36][out / PANEL][in / PANEL][PANEL][PANEL]. With few channels each thread does this in its
// own cache, for one of `groups` groups of tiles; otherwise all threads share a round in the last-level cache.
struct WeightGradient {
  Shape s;
  i64 groups, round;

  explicit WeightGradient(const Shape &shape) : s(shape) {
    const bool are_few = max(s.in, s.out) <= FEW_CHANNELS;
    groups = are_few ? min(GRADIENT_GROUPS, s.tiles()) : 1;
    const i64 most = max(1, GRADIENT_FLOATS / (36 * (s.in + s.out)) / DEPTH) * DEPTH;
    round = min(s.tiles(), are_few ? DEPTH : most);
  }

  i64 inputs_plane() const { return round * s.in + LINE; }
  i64 gradients_plane() const { return round * s.out + LINE; }
  i64 sums_plane() const { return s.out * s.in + LINE; }
  i64 shared_size() const { return groups * 36 * sums_plane(); }
  i64 own_size() const { return 36 * (inputs_plane() + gradients_plane()); }
  i64 scratch_size(i64 threads) const { return shared_size() + (groups > 1 ? threads : 1) * own_size(); }

  template <class T> void run(const Team &team, const T *x, const T *dy, float *dw, float *scratch) const {
    auto add_group = [&](const Team &team, i64 group, i64 thread) {
      float *v = scratch + shared_size() + thread * own_size(), *sums = scratch + group * 36 * sums_plane();
      const i64 begin = s.tiles() * group / groups, end = s.tiles() * (group + 1) / groups;
      for (i64 tile = begin; tile < end; tile += round)
        add_round(team, x, dy, tile, min(round, end - tile), v, v + 36 * inputs_plane(), sums, tile > begin);
    };
    if (groups > 1)
      team.run(groups, [&](i64 group, i64 thread) { add_group({nullptr, 1}, group, thread); });
    else
      add_group(team, 0, 0);
    team.run(s.out, [&](i64 channel, i64) { finish(scratch, channel, dw + channel * 9 * s.in); });
  }

private:
  template <class T>
  void add_round(const Team &team, const T *x, const T *dy, i64 first, i64 num_tiles, float *v, float *z, float *sums,
                 bool adds) const {
    team.run(2 * num_tiles, [&](i64 task, i64) {
      const i64 tile = task % num_tiles;
      if (task < num_tiles)
        input_to_panels(s, x, first + tile, v + tile * PANEL, inputs_plane(), round * PANEL);
      else
        gradient_to_panels(dy + s.tile_offset(first + tile, s.out), z + tile * PANEL);
    });
    const i64 panels = s.out / PANEL;
    team.run(36 * panels, [&](i64 task, i64) {
      const i64 p = task / panels, o = task % panels * PANEL;
      const float *a = z + p * gradients_plane() + o * round, *b = v + p * inputs_plane();
      for (i64 i = 0; i < s.in; i += PANEL)
        for (i64 t = 0; t < num_tiles; t += DEPTH)
          multiply_panels(a + t * PANEL, b + i * round + t * PANEL, sums + p * sums_plane() + o * s.in + i * PANEL,
                          min(DEPTH, num_tiles - t), adds || t > 0);
    });
  }

  template <class T> void gradient_to_panels(const T *dy, float *out) const {
    for (i64 c = 0; c < s.out; c += LANES) {
      float *to = out + c / PANEL * round * PANEL + c % PANEL;
      transform<OutputGradientTransform>([&](int i, int j) { return load(dy + (i * s.width + j) * s.out + c); },
                                         [&](int i, int j, vec v) { store(to + (6 * i + j) * gradients_plane(), v); });
    }
  }

  // Transform the sums of all groups into the gradient of one output channel's filters.
  void finish(const float *sums, i64 channel, float *dw) const {
    const float *row = sums + channel / PANEL * PANEL * s.in + channel % PANEL * PANEL;
    for (i64 c = 0; c < s.in; c += LANES) {
      auto get = [&](int i, int j) {
        const float *p = row + (6 * i + j) * sums_plane() + c / PANEL * PANEL * PANEL + c % PANEL;
        vec sum = load(p);
        for (i64 g = 1; g < groups; ++g) sum += load(p + g * 36 * sums_plane());
        return sum;
      };
      transform<FilterGradientTransform>(get, [&](int i, int j, vec v) { store(dw + (3 * i + j) * s.in + c, v); });
    }
  }
};

template <class T>
void run_pass(i64 pass, const Team &team, const Shape &s, const void *x, const void *other, void *result, float *scratch) {
  if (pass == 'w')
    WeightGradient(s).run(team, (const T *)x, (const T *)other, (float *)result, scratch);
  else
    Convolution(s, team.threads).run(team, pass == 'i', (const T *)x, (const float *)other, (T *)result, scratch);
}

} // namespace

extern "C" {

i64 winograd_channel_multiple() { return max(PANEL, GROUP); }

// Floats of scratch, aligned to 64 bytes, that a pass needs.
i64 winograd_scratch_size(i64 pass, i64 threads, i64 n, i64 h, i64 w, i64 in, i64 out) {
  const Shape s{n, h, w, in, out};
  return pass == 'w' ? WeightGradient(s).scratch_size(threads) : Convolution(s, threads).scratch_size(threads);
}

// Pass 'f' computes the output from the input x and the weights; 'i' the input's gradient from the output's gradient, given
// as x, and the weights; 'w' the weights' gradient from the input x and the output's gradient. `in` is the channels of x.
void winograd_run(Parallel start, i64 pass, i64 threads, i64 is_bf16, const void *x, const void *other, void *result,
                  float *scratch, i64 n, i64 h, i64 w, i64 in, i64 out) {
  const Team team{start, unsigned(threads)};
  (is_bf16 ? run_pass<bf16> : run_pass<float>)(pass, team, {n, h, w, in, out}, x, other, result, scratch);
}
}
