// Operators around the paged cache: rotating and storing new rows, attending over old ones.
#pragma once
#include "ops_linear.h"

namespace understudy {
namespace {

int64_t cache_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return 0;
    case at::kBFloat16:
      return 1;
    case at::kHalf:
      return 2;
    case at::kChar:
      return 3;
    default:
      TORCH_CHECK_VALUE(false, "keys must be float32, bfloat16, float16 or int8, they are ",
                        tensor.scalar_type(), ".");
  }
}

void check_cached(const Tensor& tensor, const Tensor& keys, const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 4 && tensor.scalar_type() == keys.scalar_type() &&
                        tensor.sizes().slice(0, 3) == keys.sizes().slice(0, 3) &&
                        tensor.stride(3) == 1,
                    name, " must be (blocks, block size, kv heads, dim) like keys ", keys.sizes(),
                    " with adjacent values, they are ", tensor.sizes(), ".");
}

float* checked_scales(const OptionalTensor& scales, const Tensor& keys, const char* name,
                      int64_t* strides) {
  if (keys.scalar_type() != at::kChar) return nullptr;
  TORCH_CHECK_VALUE(
      scales && scales->scalar_type() == at::kFloat && scales->sizes() == keys.sizes().slice(0, 3),
      name, " must be float32 of shape ", keys.sizes().slice(0, 3), " beside int8 keys.");
  std::copy_n(scales->strides().begin(), 3, strides);
  return scales->mutable_data_ptr<float>();
}

Cache checked_cache(const Tensor& keys, const Tensor& values, const OptionalTensor& key_scales,
                    const OptionalTensor& value_scales) {
  check_cached(keys, keys, "keys");
  check_cached(values, keys, "values");
  Cache cache = {};
  cache.keys = keys.mutable_data_ptr();
  cache.values = values.mutable_data_ptr();
  cache.dtype = cache_dtype(keys);
  std::copy_n(keys.strides().begin(), 3, cache.key_strides);
  std::copy_n(values.strides().begin(), 3, cache.value_strides);
  cache.key_scales = checked_scales(key_scales, keys, "key_scales", cache.key_scale_strides);
  cache.value_scales =
      checked_scales(value_scales, keys, "value_scales", cache.value_scale_strides);
  cache.num_blocks = keys.size(0), cache.block_size = keys.size(1),
  cache.num_kv_heads = keys.size(2);
  cache.key_dim = keys.size(3), cache.value_dim = values.size(3);
  return cache;
}

const int32_t* checked_indices(const Tensor& tensor, int64_t dims, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == at::kInt && tensor.dim() == dims && tensor.is_contiguous(), name,
      " must be contiguous int32 of ", dims, " dimensions.");
  return tensor.const_data_ptr<int32_t>();
}

// Nothing outside the tables and blocks is ever read, whatever the caller says.
void check_tables(const Attention& a, int64_t num_rows, int64_t num_sequences) {
  const Cache& cache = a.cache;
  for (int64_t t = 0; t < num_rows; ++t) {
    const int64_t sequence = a.sequences[t], length = a.lengths[t];
    TORCH_CHECK_VALUE(sequence >= 0 && sequence < num_sequences, "row ", t, " names sequence ",
                      sequence, " of ", num_sequences, ".");
    TORCH_CHECK_VALUE(length >= 0 && length <= a.table_stride * cache.block_size, "row ", t,
                      " sees ", length, " tokens, its table holds ",
                      a.table_stride * cache.block_size, ".");
    if (t > 0 && a.sequences[t - 1] == sequence && a.lengths[t - 1] >= length) continue;
    for (int64_t i = 0; i * cache.block_size < length; ++i) {
      const int64_t block = a.tables[sequence * a.table_stride + i];
      TORCH_CHECK_VALUE(block >= 0 && block < cache.num_blocks, "sequence ", sequence,
                        " names block ", block, " of ", cache.num_blocks, ".");
    }
  }
}

void check_slots(const Tensor& slots, const Cache& cache, int64_t num_rows) {
  TORCH_CHECK_VALUE(slots.scalar_type() == at::kLong && slots.dim() == 1 && slots.is_contiguous() &&
                        slots.numel() == num_rows,
                    "slots must be ", num_rows, " contiguous int64.");
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < num_rows; ++t) {
    TORCH_CHECK_VALUE(slot[t] >= 0 && slot[t] < cache.num_blocks * cache.block_size, "slot ",
                      slot[t], " is outside ", cache.num_blocks, " blocks of ", cache.block_size,
                      ".");
  }
}

std::vector<AttentionTask> cut(const Attention& a, int64_t num_rows) {
  const int64_t shared = a.num_heads / a.cache.num_kv_heads;
  const int64_t heads_each = std::min(shared, kQueryTile), rows_each = kQueryTile / heads_each;
  std::vector<AttentionTask> tasks;
  for (int64_t row = 0, count; row < num_rows; row += count) {
    for (count = 1; count < rows_each && row + count < num_rows &&
                    a.sequences[row + count] == a.sequences[row];)
      ++count;
    const int64_t longest = *std::max_element(a.lengths + row, a.lengths + row + count);
    const int64_t num_splits = (longest + kSplit - 1) / kSplit;
    for (int64_t head = 0; head < a.num_heads; head += heads_each) {
      const int64_t kv_head = head / shared;
      const int64_t stop = std::min(head + heads_each, (kv_head + 1) * shared);
      tasks.push_back({row, count, kv_head, head, stop - head, 0, num_splits, nullptr});
      head = stop - heads_each;
    }
  }
  return tasks;
}

// What a task costs, in readings of one split by one query; reading a split costs about four.
int64_t cost_of(const AttentionTask& task) {
  constexpr int64_t reading = 4;
  return task.num_splits * (reading + task.num_rows * task.num_heads);
}

// Cuts tasks that take more than an eighth of a thread's part along the fixed splits, so that one
// long context among short ones keeps every thread busy; the sums stay the same. Parts of one run
// of rows follow one another by split: heads lie side by side in the cache. `first` gets where the
// parts of each task begin and `step` how far apart they are, 0 for a task that is whole.
struct Shares {
  std::vector<AttentionTask> parts;
  std::vector<int64_t> first, step;
};

Shares share_out(const std::vector<AttentionTask>& tasks, int64_t threads) {
  int64_t total = 0;
  for (const AttentionTask& task : tasks) total += cost_of(task);
  Shares shares;
  for (size_t t = 0, stop; t < tasks.size(); t = stop) {
    for (stop = t + 1; stop < tasks.size() && tasks[stop].row == tasks[t].row;) ++stop;
    const bool is_whole =
        threads == 1 || tasks[t].num_splits < 2 || 8 * threads * cost_of(tasks[t]) <= total;
    const int64_t begin = static_cast<int64_t>(shares.parts.size());
    for (size_t i = t; i < stop; ++i) {
      shares.first.push_back(begin + static_cast<int64_t>(i - t));
      shares.step.push_back(is_whole ? 0 : static_cast<int64_t>(stop - t));
    }
    for (int64_t s = 0; s < (is_whole ? 1 : tasks[t].num_splits); ++s) {
      for (size_t i = t; i < stop; ++i) {
        shares.parts.push_back(tasks[i]);
        if (!is_whole) shares.parts.back().first_split = s, shares.parts.back().num_splits = 1;
      }
    }
  }
  return shares;
}

// Where each thread's run of parts begins, so that runs cost about the same.
std::vector<int64_t> equal_runs(const std::vector<AttentionTask>& parts, int64_t num_runs) {
  int64_t total = 0, before = 0;
  for (const AttentionTask& part : parts) total += cost_of(part);
  std::vector<int64_t> begins = {0};
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t cost = cost_of(parts[i]), run = static_cast<int64_t>(begins.size());
    if (run < num_runs && (2 * before + cost) * num_runs > 2 * total * run) {
      begins.push_back(static_cast<int64_t>(i));
    }
    before += cost;
  }
  begins.push_back(static_cast<int64_t>(parts.size()));
  return begins;
}

}  // namespace

void run_rotation(const Rotation& rotation, int64_t num_rows) {
  const int64_t width =
      (rotation.num_heads + 2 * rotation.cache.num_kv_heads) * rotation.cache.key_dim;
  over(num_rows, 4 * width,
       [&](int64_t begin, int64_t end) { kernels().rotate(rotation, begin, end); });
}

void run_attention(const Attention& a, int64_t num_rows) {
  const std::vector<AttentionTask> tasks = cut(a, num_rows);
  Shares shares = share_out(tasks, at::get_num_threads());
  const int64_t num_parts = static_cast<int64_t>(shares.parts.size());
  const int64_t size = kQueryTile * (2 + (a.cache.value_dim + kLanes - 1) / kLanes * kLanes);
  const bool is_cut = num_parts > static_cast<int64_t>(tasks.size());
  const Tensor partials = floats({is_cut ? num_parts : 0, size});
  for (size_t t = 0; t < tasks.size(); ++t) {
    for (int64_t s = 0; shares.step[t] > 0 && s < tasks[t].num_splits; ++s) {
      const int64_t part = shares.first[t] + s * shares.step[t];
      shares.parts[part].partial = partials.mutable_data_ptr<float>() + part * size;
    }
  }
  const std::vector<int64_t> runs = equal_runs(shares.parts, at::get_num_threads());
  const int64_t num_runs = static_cast<int64_t>(runs.size()) - 1;
  const auto attend = a.is_latent ? kernels().attend_latent : kernels().attend;
  at::parallel_for(0, num_runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = runs[begin]; i < runs[end]; ++i) attend(a, shares.parts[i]);
  });
  std::vector<AttentionTask> splits;
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (shares.step[t] == 0) continue;
    splits.clear();
    for (int64_t s = 0; s < tasks[t].num_splits; ++s) {
      splits.push_back(shares.parts[shares.first[t] + s * shares.step[t]]);
    }
    kernels().merge(a, splits.data(), tasks[t].num_splits);
  }
}

Tensor rotate_and_cache(const Tensor& projected, const Tensor& cosine, const Tensor& sine,
                        const Tensor& keys, const Tensor& values, const OptionalTensor& key_scales,
                        const OptionalTensor& value_scales, const Tensor& slots, int64_t num_heads,
                        const OptionalTensor& query_norm, const OptionalTensor& key_norm,
                        double eps) {
  check_floats(projected, 2, "projected");
  Rotation r = {};
  r.cache = checked_cache(keys, values, key_scales, value_scales);
  const int64_t num_rows = projected.size(0), size = r.cache.key_dim;
  TORCH_CHECK_VALUE(size == r.cache.value_dim && size % 2 == 0 && size <= 1024,
                    "keys and values must have one even dimension of at most 1024, they have ",
                    size, " and ", r.cache.value_dim, ".");
  TORCH_CHECK_VALUE(
      num_heads > 0 && projected.size(1) == (num_heads + 2 * r.cache.num_kv_heads) * size,
      "projected must have ", (num_heads + 2 * r.cache.num_kv_heads) * size, " columns, it has ",
      projected.size(1), ".");
  for (const Tensor* angle : {&cosine, &sine}) {
    check_floats(*angle, 2, "cosine and sine");
    TORCH_CHECK_VALUE(angle->size(0) == num_rows && angle->size(1) == size / 2,
                      "cosine and sine must be (", num_rows, ", ", size / 2, "), they are ",
                      angle->sizes(), ".");
  }
  check_slots(slots, r.cache, num_rows);
  const Tensor query = floats({num_rows, num_heads, size});
  r.projected = projected.const_data_ptr<float>();
  r.cosine = cosine.const_data_ptr<float>(), r.sine = sine.const_data_ptr<float>();
  r.slots = slots.const_data_ptr<int64_t>();
  r.query_norm = query_norm ? checked_vector(*query_norm, size, "query_norm") : nullptr;
  r.key_norm = key_norm ? checked_vector(*key_norm, size, "key_norm") : nullptr;
  r.query = query.mutable_data_ptr<float>();
  r.num_heads = num_heads, r.eps = static_cast<float>(eps);
  run_rotation(r, num_rows);
  return query;
}

Tensor paged_attention(const Tensor& query, const Tensor& keys, const Tensor& values,
                       const OptionalTensor& key_scales, const OptionalTensor& value_scales,
                       const Tensor& tables, const Tensor& sequences, const Tensor& lengths,
                       double scale) {
  check_floats(query, 3, "query");
  Attention a = {};
  a.cache = checked_cache(keys, values, key_scales, value_scales);
  const int64_t num_rows = query.size(0);
  a.num_heads = query.size(1);
  TORCH_CHECK_VALUE(query.size(2) == a.cache.key_dim && a.num_heads > 0 &&
                        a.cache.num_kv_heads > 0 && a.num_heads % a.cache.num_kv_heads == 0,
                    "query ", query.sizes(), " does not fit keys ", keys.sizes(), ".");
  a.tables = checked_indices(tables, 2, "tables");
  a.sequences = checked_indices(sequences, 1, "sequences");
  a.lengths = checked_indices(lengths, 1, "lengths");
  TORCH_CHECK_VALUE(sequences.numel() == num_rows && lengths.numel() == num_rows,
                    "sequences and lengths must have ", num_rows, " values.");
  a.table_stride = tables.size(1);
  check_tables(a, num_rows, tables.size(0));
  const Tensor attended = floats({num_rows, a.num_heads, a.cache.value_dim});
  a.query = query.const_data_ptr<float>();
  a.attended = attended.mutable_data_ptr<float>();
  a.scale = static_cast<float>(scale);
  if (num_rows > 0) run_attention(a, num_rows);
  return attended;
}

}  // namespace understudy
