// All layers of a dense decoder in one call: what Python's share per operator would cost is most of
// a small model's token. The same parts in the same order as the single operators.
#pragma once
#include "ops_attention.h"

namespace understudy {
namespace {

constexpr size_t kAttentionWeights = 6;  // norm, query, key, value, output, norm; then the shards
constexpr size_t kAttentionFormats = 4;
constexpr size_t kShardWeights = 3;  // gate, up, down of a slice of the feed-forward

struct Buffers {
  Tensor normed, projected, query, attended, inner, total;
};

struct LayerCall {
  const Tensor* weights;  // the layer's
  const int64_t* formats;
  const float* bias;
  const float* query_norm;
  const float* key_norm;
  int64_t ffn_size;  // of one shard
  int64_t num_shards;
  float eps;
  bool exact;
};

// Rows are read where they lie; attention and feed-forward are added to them in place.
void attend_layer(const LayerCall& layer, float* hidden, int64_t num_rows, int64_t size,
                  Buffers& buffers, Rotation rotation, Attention attention) {
  const Cache& cache = attention.cache;
  const int64_t query_width = attention.num_heads * cache.key_dim,
                kv_width = cache.num_kv_heads * cache.key_dim;
  const int64_t widths[] = {query_width, kv_width, kv_width};
  run_norm(hidden, layer.weights[0].const_data_ptr<float>(), num_rows, size, layer.eps,
           buffers.normed.mutable_data_ptr<float>());
  Product products[3];
  int64_t column = 0;
  for (size_t i = 0; i < 3; ++i) {
    Output to = plain(buffers.projected);
    to.rows += column;
    to.bias = layer.bias ? layer.bias + column : nullptr;
    products[i] = {checked_linear(layer.weights[1 + i], layer.formats[i], widths[i], size), to};
    column += widths[i];
  }
  const at::IntArrayRef formats(layer.formats, kAttentionFormats);
  const Rows rows(buffers.normed.const_data_ptr<float>(), num_rows, size,
                  any_quantised(formats.slice(0, 3), layer.exact));
  run_products(rows, products, 3, layer.exact);
  run_rotation(rotation, num_rows);
  run_attention(attention, num_rows);
  const Product output = {checked_linear(layer.weights[4], layer.formats[3], size, query_width),
                          {hidden, size, nullptr, hidden, size}};
  const Rows attended(attention.attended, num_rows, query_width,
                      !layer.exact && is_quantised(layer.formats[3]));
  run_products(attended, &output, 1, layer.exact);
}

// Partial sums of the shards are added in their order, and then to the rows: what workers that hold
// one shard each give is the same to the last bit.
void feed_forward(const LayerCall& layer, float* hidden, int64_t num_rows, int64_t size,
                  Buffers& buffers) {
  float* normed = buffers.normed.mutable_data_ptr<float>();
  run_norm(hidden, layer.weights[5].const_data_ptr<float>(), num_rows, size, layer.eps, normed);
  const size_t num_shards = static_cast<size_t>(layer.num_shards);
  const int64_t width = layer.ffn_size, shard_floats = num_rows * width,
                num_ups = layer.num_shards * shard_floats;
  float* inner = buffers.inner.mutable_data_ptr<float>();
  std::vector<Product> products;
  bool is_quantising = false;
  for (size_t i = 0; i < 2 * num_shards; ++i) {
    const size_t at = i / 2 * kShardWeights + i % 2;
    const int64_t format = layer.formats[kAttentionFormats + at];
    float* to = inner + static_cast<int64_t>(i / 2) * shard_floats + (i % 2 ? num_ups : 0);
    products.push_back({checked_linear(layer.weights[kAttentionWeights + at], format, width, size),
                        {to, width, nullptr, nullptr, 0}});
    is_quantising |= !layer.exact && is_quantised(format);
  }
  const Rows rows(normed, num_rows, size, is_quantising);
  run_products(rows, products.data(), products.size(), layer.exact);
  over(num_rows * layer.num_shards, 16 * width, [&](int64_t begin, int64_t end) {
    kernels().silu_multiply(inner + begin * width, inner + num_ups + begin * width,
                            (end - begin) * width, inner + begin * width);
  });
  const bool is_whole = num_shards == 1;
  float* total = is_whole ? hidden : buffers.total.mutable_data_ptr<float>();
  for (size_t s = 0; s < num_shards; ++s) {
    const size_t at = s * kShardWeights + 2;
    const int64_t format = layer.formats[kAttentionFormats + at];
    const Product down = {
        checked_linear(layer.weights[kAttentionWeights + at], format, size, width),
        {total, size, nullptr, is_whole || s > 0 ? total : nullptr, size}};
    const Rows inners(inner + static_cast<int64_t>(s) * shard_floats, num_rows, width,
                      !layer.exact && is_quantised(format));
    run_products(inners, &down, 1, layer.exact);
  }
  if (!is_whole) kernels().add(hidden, total, num_rows * size, hidden);
}

Tensor layer_part(const Tensor& storage, int64_t layer, int64_t which) {
  return storage.select(1, layer).select(1, which);
}

OptionalTensor layer_scales(const OptionalTensor& scales, int64_t layer, int64_t which) {
  return scales ? OptionalTensor(layer_part(*scales, layer, which)) : std::nullopt;
}

}  // namespace

Tensor decoder_layers(const Tensor& hidden, at::TensorList weights, at::IntArrayRef formats,
                      const OptionalTensors& of_biases, const OptionalTensors& of_heads, int64_t num_heads,
                      int64_t ffn_size, int64_t num_shards, double eps, const Tensor& cosine,
                      const Tensor& sine, const Tensor& storage, const OptionalTensor& scales,
                      const Tensor& slots, const Tensor& tables, const Tensor& sequences,
                      const Tensor& lengths, double scale, bool exact) {
  const at::TensorList biases = of_biases.value_or(at::TensorList()),
                       head_norms = of_heads.value_or(at::TensorList());
  check_floats(hidden, 2, "hidden");
  TORCH_CHECK_VALUE(num_shards > 0 && num_shards <= 1024 && ffn_size > 0, "a feed-forward of ",
                    num_shards, " shards of ", ffn_size, " cannot be.");
  const size_t num_weights = kAttentionWeights + kShardWeights * num_shards,
               num_formats = kAttentionFormats + kShardWeights * num_shards;
  const size_t num_layers = weights.size() / num_weights;
  const int64_t num_rows = hidden.size(0), size = hidden.size(1);
  check_formats(formats, num_layers * num_formats);
  TORCH_CHECK_VALUE(
      weights.size() % num_weights == 0 && (biases.empty() || biases.size() == num_layers) &&
          (head_norms.empty() || head_norms.size() == 2 * num_layers),
      "weights must be ", num_weights, " a layer, biases none or one, head norms none or two.");
  TORCH_CHECK_VALUE(storage.dim() == 6 && storage.size(1) >= static_cast<int64_t>(num_layers) &&
                        storage.size(2) == 2,
                    "storage must be (blocks, layers, 2, block size, kv heads, dim), it is ",
                    storage.sizes(), ".");
  const int64_t num_kv = storage.size(4), dim = storage.size(5),
                width = (num_heads + 2 * num_kv) * dim;
  const Tensor out = hidden.clone();
  if (num_rows == 0) return out;
  TORCH_CHECK_VALUE(num_heads > 0 && num_heads % num_kv == 0 && dim % 2 == 0 && dim <= 1024,
                    num_heads, " heads of ", dim, " do not fit ", num_kv, " kv heads.");
  for (const Tensor* angle : {&cosine, &sine}) {
    check_floats(*angle, 2, "cosine and sine");
    TORCH_CHECK_VALUE(angle->size(0) == num_rows && angle->size(1) == dim / 2,
                      "cosine and sine must be (", num_rows, ", ", dim / 2, ").");
  }
  TORCH_CHECK_VALUE(sequences.numel() == num_rows && lengths.numel() == num_rows,
                    "sequences and lengths must have ", num_rows, " values.");
  Buffers buffers = {floats({num_rows, size}),
                     floats({num_rows, width}),
                     floats({num_rows, num_heads, dim}),
                     floats({num_rows, num_heads, dim}),
                     floats({2, num_shards, num_rows, ffn_size}),
                     floats({num_shards > 1 ? num_rows : 0, size})};
  Attention attention = {};
  attention.query = buffers.query.const_data_ptr<float>(),
  attention.attended = buffers.attended.mutable_data_ptr<float>();
  attention.tables = checked_indices(tables, 2, "tables"),
  attention.sequences = checked_indices(sequences, 1, "sequences");
  attention.lengths = checked_indices(lengths, 1, "lengths"),
  attention.table_stride = tables.size(1);
  attention.num_heads = num_heads, attention.scale = static_cast<float>(scale);
  Rotation rotation = {};
  rotation.projected = buffers.projected.const_data_ptr<float>(),
  rotation.cosine = cosine.const_data_ptr<float>();
  rotation.sine = sine.const_data_ptr<float>(), rotation.slots = slots.const_data_ptr<int64_t>();
  rotation.query = buffers.query.mutable_data_ptr<float>(), rotation.num_heads = num_heads,
  rotation.eps = static_cast<float>(eps);
  for (size_t i = 0; i < num_layers; ++i) {
    const int64_t layer = static_cast<int64_t>(i);
    const Tensor keys = layer_part(storage, layer, 0), values = layer_part(storage, layer, 1);
    attention.cache =
        checked_cache(keys, values, layer_scales(scales, layer, 0), layer_scales(scales, layer, 1));
    if (i == 0)
      check_slots(slots, attention.cache, num_rows),
          check_tables(attention, num_rows, tables.size(0));
    checked_vector(weights[i * num_weights], size, "attention norm"),
        checked_vector(weights[i * num_weights + 5], size, "ffn norm");
    const LayerCall call = {
        &weights[i * num_weights],
        &formats[i * num_formats],
        biases.empty() ? nullptr : checked_vector(biases[i], width, "bias"),
        head_norms.empty() ? nullptr : checked_vector(head_norms[2 * i], dim, "query norm"),
        head_norms.empty() ? nullptr : checked_vector(head_norms[2 * i + 1], dim, "key norm"),
        ffn_size,
        num_shards,
        static_cast<float>(eps),
        exact};
    rotation.cache = attention.cache, rotation.query_norm = call.query_norm,
    rotation.key_norm = call.key_norm;
    float* rows = out.mutable_data_ptr<float>();
    attend_layer(call, rows, num_rows, size, buffers, rotation, attention);
    feed_forward(call, rows, num_rows, size, buffers);
  }
  return out;
}

}  // namespace understudy
