// Mixtures: the SwiGLU experts chosen for each row, added up in ascending expert id.
//
// Rows are gathered by expert, and all experts' products of one kind are one parallel region, cut
// by what they cost: few rows for many experts keep every thread busy, and so do ragged ones.
#pragma once
#include "ops_linear.h"

namespace understudy {
namespace {

constexpr int64_t kOpening = 4;  // what opening a matrix costs, in rows that are multiplied by it
constexpr int64_t kGatheredFloats = int64_t{1} << 22;  // that lie open at a time: 16 MiB
constexpr int64_t kSumColumns = 256;

struct Stack {  // the same matrix of several experts, one after another
  const uint8_t* packed;
  int64_t format, num_out, num_in;
  Linear of(int64_t expert) const {
    return {packed + expert * packed_bytes(format, num_out, num_in), format, num_out, num_in};
  }
};

Stack checked_stack(const Tensor& packed, int64_t format, int64_t num_out, int64_t num_in,
                    int64_t num_experts) {
  TORCH_CHECK_VALUE(packed.dim() == 2 && packed.size(0) == num_experts && packed.is_contiguous(),
                    "packed experts must be (", num_experts, ", bytes) and contiguous, they are ",
                    packed.sizes(), ".");
  if (num_experts > 0) checked_linear(packed.select(0, 0), format, num_out, num_in);
  return {packed.const_data_ptr<uint8_t>(), format, num_out, num_in};
}

struct Choice {
  int64_t row;
  float weight;
};

// The rows of one expert, `first` of those that are gathered.
struct Group {
  int64_t expert, first, count;
};

// The choices of experts that are held, by expert and then by row, and where each expert's lie.
struct Choices {
  std::vector<Choice> all;
  std::vector<Group> groups;
};

Choices by_expert(const Tensor& ids, const Tensor& gates, int64_t first, int64_t num_experts) {
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const float* weight = gates.const_data_ptr<float>();
  std::vector<int64_t> ends(num_experts + 1, 0);
  // Other experts belong to other shards or need no computation, and a weight of 0 asks for none.
  const auto place = [&](int64_t i) {
    const int64_t expert = id[i] - first;
    return expert >= 0 && expert < num_experts && weight[i] != 0.0f ? expert : -1;
  };
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK_VALUE(id[i] >= 0, "expert ids must not be negative, one is ", id[i], ".");
    if (place(i) >= 0) ++ends[place(i) + 1];
  }
  Choices choices;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t count = ends[expert + 1];
    if (count > 0) choices.groups.push_back({expert, ends[expert], count});
    ends[expert + 1] += ends[expert];
  }
  choices.all.resize(ends[num_experts]);
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (place(i) >= 0) choices.all[ends[place(i)]++] = {i / ids.size(1), weight[i]};
  }
  return choices;
}

// One product of one expert's rows.
struct GroupProduct {
  Linear linear;
  const float* rows;             // (count, num_in)
  const QuantisedBlock* blocks;  // of those rows, where the product is a fast one
  int64_t count;
  float* out;  // (count, num_out)
};

void run_group(const GroupProduct& product, int64_t begin, int64_t end) {
  const Output to = {product.out, product.linear.num_out, nullptr, nullptr, 0};
  if (product.blocks == nullptr) {
    kernels().linear_exact(product.linear, product.rows, product.linear.num_in, product.count, to,
                           begin, end);
  } else {
    kernels().linear_fast(product.linear, product.blocks, product.count, to, begin, end);
  }
}

// Cuts the groups of outputs of all products into runs that cost the same, one for each thread.
void run_group_products(const std::vector<GroupProduct>& products) {
  int64_t total = 0, macs = 0;
  for (const GroupProduct& each : products) {
    total += num_groups(each.linear.num_out) * (kOpening + each.count);
    macs += each.count * each.linear.num_out * each.linear.num_in;
  }
  const int64_t runs =
      std::clamp<int64_t>(macs / kMacsPerTask, 1, static_cast<int64_t>(at::get_num_threads()));
  at::parallel_for(0, runs, 1, [&](int64_t first_run, int64_t last_run) {
    const int64_t from = total * first_run / runs, to = total * last_run / runs;
    int64_t before = 0;
    for (const GroupProduct& each : products) {
      const int64_t cost = kOpening + each.count, count = num_groups(each.linear.num_out);
      const auto place = [&](int64_t at) {
        return std::clamp<int64_t>((at - before + cost - 1) / cost, 0, count);
      };
      const int64_t begin = from > before ? place(from) : 0, end = to > before ? place(to) : 0;
      if (begin < end) run_group(each, begin, end);
      before += cost * count;
    }
  });
}

// Rows of groups as their products read them: each group's are quantised by themselves.
class GroupRows {
 public:
  GroupRows(const float* rows, int64_t num_in, const Group* groups, size_t num_groups,
            bool is_quantised)
      : rows_(rows), num_in_(num_in), origin_(groups->first), blocks_(nullptr) {
    if (!is_quantised) return;
    const Group& last = groups[num_groups - 1];
    const int64_t count = (last.first + last.count - origin_) * (num_in / kBlock);
    memory_ = at::empty({count * static_cast<int64_t>(sizeof(QuantisedBlock))},
                        at::TensorOptions(at::kByte));
    blocks_ = reinterpret_cast<QuantisedBlock*>(memory_.mutable_data_ptr<uint8_t>());
    over(static_cast<int64_t>(num_groups), 8 * num_in * (count * kBlock / num_in) / num_groups,
         [&](int64_t begin, int64_t end) {
           for (int64_t g = begin; g < end; ++g) {
             kernels().quantise(rows_of(groups[g]), num_in, 0, groups[g].count, num_in,
                                groups[g].count, blocks_of(groups[g]));
           }
         });
  }
  GroupProduct product(const Group& group, const Linear& linear, bool exact, float* out) const {
    const bool is_fast = !exact && is_quantised(linear.format);
    return {linear, rows_of(group), is_fast ? blocks_of(group) : nullptr, group.count,
            out + (group.first - origin_) * linear.num_out};
  }

 private:
  const float* rows_of(const Group& group) const {
    return rows_ + (group.first - origin_) * num_in_;
  }
  QuantisedBlock* blocks_of(const Group& group) const {
    return blocks_ + (group.first - origin_) * (num_in_ / kBlock);
  }
  const float* rows_;
  int64_t num_in_, origin_;
  QuantisedBlock* blocks_;
  Tensor memory_;
};

struct Mixture {
  Stack gate, up, down;
  bool exact;
};

// Adds what the experts of some groups give to the rows that chose them.
void run_groups(const Mixture& mixture, const float* hidden, const Choice* choices,
                const Group* groups, size_t num_groups, float* total) {
  const int64_t size = mixture.gate.num_in, inner_size = mixture.gate.num_out;
  const Group& last = groups[num_groups - 1];
  const int64_t count = last.first + last.count - groups->first;
  const Tensor gathered = floats({count, size}), inner = floats({2, count, inner_size});
  float* rows = gathered.mutable_data_ptr<float>();
  over(count, size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(hidden + choices[i].row * size, size, rows + i * size);
    }
  });
  float* gates = inner.mutable_data_ptr<float>();
  float* ups = gates + count * inner_size;
  std::vector<GroupProduct> products;
  const bool is_fast = !mixture.exact && (is_quantised(mixture.gate.format) ||
                                          is_quantised(mixture.up.format));
  const GroupRows inputs(rows, size, groups, num_groups, is_fast);
  for (size_t g = 0; g < num_groups; ++g) {
    const int64_t expert = groups[g].expert;
    products.push_back(
        inputs.product(groups[g], mixture.gate.of(expert), mixture.exact, gates));
    products.push_back(inputs.product(groups[g], mixture.up.of(expert), mixture.exact, ups));
  }
  run_group_products(products);
  over(count, 16 * inner_size, [&](int64_t begin, int64_t end) {
    kernels().silu_multiply(gates + begin * inner_size, ups + begin * inner_size,
                            (end - begin) * inner_size, gates + begin * inner_size);
  });
  products.clear();
  const GroupRows inners(gates, inner_size, groups, num_groups,
                         !mixture.exact && is_quantised(mixture.down.format));
  for (size_t g = 0; g < num_groups; ++g) {  // into the rows that were gathered: they are spent
    products.push_back(
        inners.product(groups[g], mixture.down.of(groups[g].expert), mixture.exact, rows));
  }
  run_group_products(products);
  over((size + kSumColumns - 1) / kSumColumns, 4 * count * kSumColumns,
       [&](int64_t begin, int64_t end) {
         const int64_t from = begin * kSumColumns, width = std::min(size, end * kSumColumns) - from;
         for (int64_t i = 0; i < count; ++i) {
           kernels().add_scaled(rows + i * size + from, choices[i].weight, width,
                                total + choices[i].row * size + from);
         }
       });
}

}  // namespace

Tensor swiglu_experts(const Tensor& hidden, const Tensor& ids, const Tensor& gates,
                      const Tensor& gate, const Tensor& up, const Tensor& down,
                      at::IntArrayRef formats, int64_t ffn_size, int64_t first_expert, bool exact) {
  check_floats(hidden, 2, "hidden");
  check_floats(gates, 2, "gates");
  check_formats(formats, 3);
  TORCH_CHECK_VALUE(ids.scalar_type() == at::kLong && ids.is_contiguous() && ids.dim() == 2 &&
                        ids.sizes() == gates.sizes() && ids.size(0) == hidden.size(0),
                    "ids (int64) and gates must both be (", hidden.size(0),
                    ", experts per token), they are ", ids.sizes(), " and ", gates.sizes(), ".");
  const int64_t size = hidden.size(1), num_experts = gate.size(0);
  const Mixture mixture = {checked_stack(gate, formats[0], ffn_size, size, num_experts),
                           checked_stack(up, formats[1], ffn_size, size, num_experts),
                           checked_stack(down, formats[2], size, ffn_size, num_experts), exact};
  const Choices choices = by_expert(ids, gates, first_expert, num_experts);
  const Tensor out = floats(hidden.sizes());
  std::fill_n(out.mutable_data_ptr<float>(), out.numel(), 0.0f);
  const std::vector<Group>& groups = choices.groups;
  for (size_t begin = 0, end; begin < groups.size(); begin = end) {
    int64_t count = groups[begin].count;
    for (end = begin + 1;
         end < groups.size() &&
         (count + groups[end].count) * (size + 2 * ffn_size) <= kGatheredFloats;
         ++end) {
      count += groups[end].count;
    }
    run_groups(mixture, hidden.const_data_ptr<float>(), choices.all.data() + groups[begin].first,
               groups.data() + begin, end - begin, out.mutable_data_ptr<float>());
  }
  return out;
}

}  // namespace understudy
