// Operators of latent attention: rotating and storing latents, attending over them for all heads.
#pragma once
#include "ops_attention.h"

namespace understudy {
namespace {

constexpr int64_t kAbsorbedFloats = int64_t{1} << 22;  // of queries that lie open at a time: 16 MiB

// How keys and values of all heads come out of a latent: of each head the rows of its keys, then
// those of its values, both filled up to whole groups.
struct LatentUp {
  const uint8_t* packed;
  int64_t format, rank, nope_dim, value_dim, head_bytes, key_bytes;
  Linear keys(int64_t head) const {
    return {packed + head * head_bytes, format, nope_dim, rank};
  }
  Linear values(int64_t head) const {
    return {packed + head * head_bytes + key_bytes, format, value_dim, rank};
  }
};

LatentUp checked_up(const Tensor& up, int64_t format, int64_t num_heads, int64_t nope_dim,
                    int64_t value_dim, int64_t rank) {
  TORCH_CHECK_VALUE(nope_dim > 0 && value_dim > 0, "heads of ", nope_dim, " and ", value_dim,
                    " cannot be.");
  const int64_t key_rows = num_groups(nope_dim) * kLanes,
                value_rows = num_groups(value_dim) * kLanes;
  checked_linear(up, format, num_heads * (key_rows + value_rows), rank);
  const int64_t key_bytes = packed_bytes(format, key_rows, rank);
  return {up.const_data_ptr<uint8_t>(), format, rank, nope_dim, value_dim,
          key_bytes + packed_bytes(format, value_rows, rank), key_bytes};
}

Cache checked_latents(const Tensor& rope_keys, const Tensor& latents,
                      const OptionalTensor& rope_scales, const OptionalTensor& latent_scales) {
  const Cache cache = checked_cache(rope_keys, latents, rope_scales, latent_scales);
  TORCH_CHECK_VALUE(cache.num_kv_heads == 1 && cache.key_dim % 2 == 0 && cache.key_dim > 0 &&
                        cache.key_dim <= 1024 && cache.value_dim > 0 &&
                        cache.value_dim <= kMaxLatent,
                    "a latent of at most ", kMaxLatent,
                    " and an even key of at most 1024 are cached once for all heads, not ",
                    latents.sizes(), " and ", rope_keys.sizes(), ".");
  return cache;
}

// Queries (rows, H, nope + rope) as they meet latents and keys: (rows, H, rank + rope).
void absorb(const LatentUp& up, const float* query, int64_t rope_dim, int64_t num_rows,
            int64_t num_heads, float* absorbed) {
  const int64_t from = up.nope_dim + rope_dim, to = up.rank + rope_dim;
  over(num_heads, num_rows * up.nope_dim * up.rank, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      kernels().multiply_back(up.keys(h), query + h * from, num_heads * from, num_rows,
                              absorbed + h * to, num_heads * to);
      for (int64_t t = 0; t < num_rows; ++t) {
        std::copy_n(query + (t * num_heads + h) * from + up.nope_dim, rope_dim,
                    absorbed + (t * num_heads + h) * to + up.rank);
      }
    }
  });
}

// Values (rows, H, value_dim) of attended latents (rows, H, rank).
void lift(const LatentUp& up, const float* attended, int64_t num_rows, int64_t num_heads,
          float* out) {
  over(num_heads, num_rows * up.value_dim * up.rank, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      const Output to = {out + h * up.value_dim, num_heads * up.value_dim, nullptr, nullptr, 0};
      kernels().linear_exact(up.values(h), attended + h * up.rank, num_heads * up.rank, num_rows,
                             to, 0, num_groups(up.value_dim));
    }
  });
}

}  // namespace

Tensor rotate_and_cache_latent(const Tensor& query, const Tensor& compressed, const Tensor& cosine,
                               const Tensor& sine, const Tensor& rope_keys, const Tensor& latents,
                               const OptionalTensor& rope_scales,
                               const OptionalTensor& latent_scales, const Tensor& slots,
                               int64_t num_heads, const Tensor& norm, double eps,
                               double query_scale, double latent_scale, bool interleaved) {
  check_floats(query, 2, "query");
  check_floats(compressed, 2, "compressed");
  LatentRotation r = {};
  r.cache = checked_latents(rope_keys, latents, rope_scales, latent_scales);
  const int64_t num_rows = query.size(0), rope_dim = r.cache.key_dim, rank = r.cache.value_dim;
  TORCH_CHECK_VALUE(num_heads > 0 && query.size(1) % num_heads == 0 &&
                        query.size(1) / num_heads > rope_dim,
                    "query ", query.sizes(), " cannot be of ", num_heads,
                    " heads that are rotated by ", rope_dim, ".");
  TORCH_CHECK_VALUE(compressed.size(0) == num_rows && compressed.size(1) == rank + rope_dim,
                    "compressed must be (", num_rows, ", ", rank + rope_dim, "), it is ",
                    compressed.sizes(), ".");
  for (const Tensor* angle : {&cosine, &sine}) {
    check_floats(*angle, 2, "cosine and sine");
    TORCH_CHECK_VALUE(angle->size(0) == num_rows && angle->size(1) == rope_dim / 2,
                      "cosine and sine must be (", num_rows, ", ", rope_dim / 2, "), they are ",
                      angle->sizes(), ".");
  }
  check_slots(slots, r.cache, num_rows);
  const Tensor rotated = floats({num_rows, num_heads, query.size(1) / num_heads});
  r.query = query.const_data_ptr<float>();
  r.compressed = compressed.const_data_ptr<float>();
  r.cosine = cosine.const_data_ptr<float>(), r.sine = sine.const_data_ptr<float>();
  r.slots = slots.const_data_ptr<int64_t>();
  r.norm = checked_vector(norm, rank, "norm");
  r.rotated = rotated.mutable_data_ptr<float>();
  r.num_heads = num_heads, r.nope_dim = rotated.size(2) - rope_dim;
  r.eps = static_cast<float>(eps), r.query_scale = static_cast<float>(query_scale);
  r.latent_scale = static_cast<float>(latent_scale), r.is_interleaved = interleaved;
  over(num_rows, 4 * (query.size(1) + rank),
       [&](int64_t begin, int64_t end) { kernels().rotate_latent(r, begin, end); });
  return rotated;
}

Tensor latent_attention(const Tensor& query, const Tensor& up, int64_t format, int64_t value_dim,
                        const Tensor& rope_keys, const Tensor& latents,
                        const OptionalTensor& rope_scales, const OptionalTensor& latent_scales,
                        const Tensor& tables, const Tensor& sequences, const Tensor& lengths,
                        double scale) {
  check_floats(query, 3, "query");
  Attention a = {};
  a.cache = checked_latents(rope_keys, latents, rope_scales, latent_scales);
  const int64_t num_rows = query.size(0), num_heads = query.size(1), rope_dim = a.cache.key_dim,
                rank = a.cache.value_dim;
  const LatentUp expansion =
      checked_up(up, format, num_heads, query.size(2) - rope_dim, value_dim, rank);
  a.tables = checked_indices(tables, 2, "tables");
  a.sequences = checked_indices(sequences, 1, "sequences");
  a.lengths = checked_indices(lengths, 1, "lengths");
  TORCH_CHECK_VALUE(sequences.numel() == num_rows && lengths.numel() == num_rows,
                    "sequences and lengths must have ", num_rows, " values.");
  a.table_stride = tables.size(1), a.num_heads = num_heads;
  a.scale = static_cast<float>(scale), a.is_latent = true;
  check_tables(a, num_rows, tables.size(0));
  const Tensor out = floats({num_rows, num_heads, value_dim});
  const int64_t width = num_heads * (rank + rope_dim);
  const int64_t most = std::min(num_rows, std::max(kQueryTile, kAbsorbedFloats / width));
  const Tensor absorbed = floats({most, width}), attended = floats({most, num_heads * rank});
  a.query = absorbed.const_data_ptr<float>(), a.attended = attended.mutable_data_ptr<float>();
  for (int64_t start = 0; start < num_rows; start += most) {
    const int64_t count = std::min(most, num_rows - start);
    absorb(expansion, query.const_data_ptr<float>() + start * num_heads * query.size(2), rope_dim,
           count, num_heads, absorbed.mutable_data_ptr<float>());
    run_attention(a, count);
    lift(expansion, a.attended, count, num_heads,
         out.mutable_data_ptr<float>() + start * num_heads * value_dim);
    a.sequences += count, a.lengths += count;
  }
  return out;
}

}  // namespace understudy
