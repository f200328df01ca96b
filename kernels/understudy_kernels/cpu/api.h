// What the instruction-set files give to the bindings: plain structs and function pointers.
//
// Every function computes rows independently of one another and in one fixed order, so the result
// of a row depends neither on how many rows a call has nor on how the work is cut over threads.
#pragma once
#include <cstdint>

namespace understudy {

// The numbers are those of formats.py.
enum Format : int64_t { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, kNumFormats };

constexpr int64_t kLanes = 16;      // output rows that lie interleaved in one group
constexpr int64_t kBlock = 32;      // inputs that share a scale
constexpr int64_t kSplit = 256;     // tokens whose attention is summed before it is merged
constexpr int64_t kQueryTile = 48;  // query rows that share one reading of keys and values
constexpr int64_t kMaxLatent = 4096;

// 32 activations as int8; `sum` is scale * (sum of values), `half_sums` the same of each half.
struct QuantisedBlock {
  int8_t values[kBlock];
  float scale, sum, half_sums[2];
};

struct Linear {
  const uint8_t* packed;
  int64_t format, num_out, num_in;
};

// Where results (T, num_out) go, and what is added to them; bias and residual may be null.
struct Output {
  float* rows;
  int64_t stride;
  const float* bias;
  const float* residual;
  int64_t residual_stride;
};

struct Cache {
  void* keys;
  void* values;
  float* key_scales;  // null unless the cache is int8
  float* value_scales;
  int64_t dtype;                                         // 0 float32, 1 bfloat16, 2 float16, 3 int8
  int64_t key_strides[3], value_strides[3];              // block, token, head; in elements
  int64_t key_scale_strides[3], value_scale_strides[3];  // block, token, head
  int64_t num_blocks, block_size, num_kv_heads, key_dim, value_dim;
};

struct Attention {
  Cache cache;
  const float* query;  // (T, H, key_dim)
  float* attended;     // (T, H, value_dim)
  const int32_t* tables;
  const int32_t* sequences;
  const int32_t* lengths;
  int64_t table_stride, num_heads;
  float scale;
  bool is_latent;  // whether the cache is as `LatentRotation` fills it
};

// Rows of one sequence and heads of one kv head that are attended together, kQueryTile at most.
struct AttentionTask {
  int64_t row, num_rows, kv_head, head, num_heads, first_split, num_splits;
  float* partial;  // null, or where (max, sum, value_dim values) of each query row go unmerged
};

struct Rotation {
  Cache cache;
  const float* projected;  // (T, (H + 2 * kv_heads) * key_dim)
  const float* cosine;     // (T, key_dim / 2)
  const float* sine;
  const int64_t* slots;
  const float* query_norm;  // (key_dim,) or null
  const float* key_norm;
  float* query;  // (T, H, key_dim)
  int64_t num_heads;
  float eps;
};

// Latent attention keeps of a token its latent (`cache.values`) and a rotated key that all heads
// share (`cache.keys`), as a cache of one head. The query of `Attention` is then
// (T, H, value_dim + key_dim), the key projection absorbed.
struct LatentRotation {
  Cache cache;
  const float* query;       // (T, H, nope_dim + key_dim)
  const float* compressed;  // (T, value_dim + key_dim): latent before its norm, key
  const float* cosine;      // (T, key_dim / 2)
  const float* sine;
  const int64_t* slots;
  const float* norm;  // (value_dim,)
  float* rotated;     // (T, H, nope_dim + key_dim)
  int64_t num_heads, nope_dim;
  float eps, query_scale, latent_scale;
  bool is_interleaved;  // whether pairs to rotate are neighbours rather than halves apart
};

struct Kernels {
  const char* isa;
  // Quantises rows [begin, end) of x into blocks[b * num_rows + t].
  void (*quantise)(const float* x, int64_t stride, int64_t begin, int64_t end, int64_t num_in,
                   int64_t num_rows, QuantisedBlock* blocks);
  // Both compute the output columns of the groups [begin, end) for all rows.
  void (*linear_fast)(const Linear&, const QuantisedBlock*, int64_t num_rows, const Output&,
                      int64_t begin, int64_t end);
  void (*linear_exact)(const Linear&, const float* x, int64_t stride, int64_t num_rows,
                       const Output&, int64_t begin, int64_t end);
  void (*embed)(const Linear&, int64_t id, float* row);
  void (*rms_norm)(const float* x, const float* weight, int64_t size, float eps, float* out);
  void (*add)(const float* a, const float* b, int64_t size, float* out);
  void (*add_scaled)(const float* x, float scale, int64_t size, float* total);
  void (*silu_multiply)(const float* gate, const float* up, int64_t size, float* out);
  void (*rotate)(const Rotation&, int64_t begin, int64_t end);
  void (*attend)(const Attention&, const AttentionTask&);
  void (*merge)(const Attention&, const AttentionTask*, int64_t num_tasks);
  void (*rotate_latent)(const LatentRotation&, int64_t begin, int64_t end);
  // out (T, num_in) = x (T, num_out) times the matrix itself rather than its transpose.
  void (*multiply_back)(const Linear&, const float* x, int64_t stride, int64_t num_rows, float* out,
                        int64_t out_stride);
  void (*attend_latent)(const Attention&, const AttentionTask&);
  // The greatest of some logits, or what is not a number among them.
  float (*largest)(const float* x, int64_t size);
  double (*sum_of_exponentials)(const float* x, int64_t size, float top);
};

const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace understudy
