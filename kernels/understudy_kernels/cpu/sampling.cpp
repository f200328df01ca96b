// Choosing a token of one row: compiled for any machine, its passes over the vocabulary are
// kernels.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace understudy {
namespace {

// Sorted as a stable sort would: better logits first, equal ones by id.
void sort_candidates(const float* logits, std::vector<int64_t>& ids) {
  std::sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
}

std::vector<int64_t> best_k(const float* logits, int64_t size, int64_t k) {
  std::vector<int64_t> ids(size);
  std::iota(ids.begin(), ids.end(), 0);
  if (k < size) {
    std::nth_element(ids.begin(), ids.begin() + k, ids.end(), [&](int64_t a, int64_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    ids.resize(k);
  }
  return ids;
}

// Everything that can belong to the best `top_p` of the mass: what lies this far below the best
// adds up to at most half of what is left out.
std::vector<int64_t> near_best(const float* logits, int64_t size, double top, double temperature,
                               double top_p) {
  const double reach = std::log(2.0 * static_cast<double>(size) / (1.0 - top_p));
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < size; ++i) {
    if ((logits[i] - top) / temperature >= -reach) ids.push_back(i);
  }
  return ids;
}

double mass(const SampleRow& row, const float* logits, double top, int64_t id) {
  return std::exp((static_cast<double>(logits[id]) - top) / row.temperature);
}

int64_t draw(const SampleRow& row, const float* logits, float best) {
  const double top = best;
  const bool is_limited = row.top_k > 0 || row.top_p < 1.0;
  std::vector<int64_t> ids;
  if (row.top_k > 0) {
    ids = best_k(logits, row.vocab_size, row.top_k);
  } else if (row.top_p < 1.0) {
    ids = near_best(logits, row.vocab_size, top, row.temperature, row.top_p);
  } else {
    ids.resize(row.vocab_size);
    std::iota(ids.begin(), ids.end(), 0);
  }
  if (is_limited) sort_candidates(logits, ids);
  std::vector<double> cumulative(ids.size());
  double total = 0.0;
  for (size_t i = 0; i < ids.size(); ++i) cumulative[i] = total += mass(row, logits, top, ids[i]);
  size_t size = ids.size();
  if (row.top_p < 1.0) {
    double whole = total;
    if (row.top_k == 0) {
      whole = 0.0;
      for (int64_t i = 0; i < row.vocab_size; ++i) whole += mass(row, logits, top, i);
    }
    const auto end = std::lower_bound(cumulative.begin(), cumulative.end(), row.top_p * whole);
    size = std::min(ids.size(), static_cast<size_t>(end - cumulative.begin()) + 1);
    total = cumulative[size - 1];
  }
  const auto stop = cumulative.begin() + static_cast<int64_t>(size);
  const auto index =
      std::upper_bound(cumulative.begin(), stop, row.uniform * total) - cumulative.begin();
  // Rounding may carry the target onto the total, past the last token with any probability.
  const auto last = std::lower_bound(cumulative.begin(), stop, total) - cumulative.begin();
  return ids[std::min(index, last)];
}

bool is_allowed(const SampleRow& row, int64_t id) {
  return id / 32 < row.num_words &&
         (static_cast<uint32_t>(row.mask[id / 32]) >> (id % 32) & 1u) != 0;
}

}  // namespace

void sample_row(const Kernels& kernels, SampleRow& row) {
  const float* logits = row.logits;
  const float top = kernels.largest(logits, row.vocab_size);
  if (std::isnan(top)) {
    row.token = kNotANumber;
    return;
  }
  const double whole = kernels.sum_of_exponentials(logits, row.vocab_size, top);
  std::vector<float> masked;
  if (row.mask != nullptr) {
    masked.assign(logits, logits + row.vocab_size);
    double lost = 0.0;
    int64_t num_allowed = 0;
    for (int64_t id = 0; id < row.vocab_size; ++id) {
      if (is_allowed(row, id)) {
        ++num_allowed;
      } else {
        lost += std::exp(static_cast<double>(logits[id]) - top);
        masked[id] = -std::numeric_limits<float>::infinity();
      }
    }
    if (num_allowed == 0) {
      row.token = kNothingAllowed;
      return;
    }
    row.mask_loss = static_cast<float>(lost / whole);
    logits = masked.data();
  } else {
    row.mask_loss = 0.0f;
  }
  const float best = row.mask == nullptr ? top : kernels.largest(logits, row.vocab_size);
  const int64_t greedy = std::find(logits, logits + row.vocab_size, best) - logits;
  float second = -std::numeric_limits<float>::infinity();
  if (greedy > 0) second = kernels.largest(logits, greedy);
  if (greedy + 1 < row.vocab_size) {
    second = std::max(second, kernels.largest(logits + greedy + 1, row.vocab_size - greedy - 1));
  }
  const double allowed =
      row.mask == nullptr ? whole : kernels.sum_of_exponentials(logits, row.vocab_size, best);
  row.margin = static_cast<float>((1.0 - std::exp(static_cast<double>(second) - best)) / allowed);
  row.token = row.temperature > 0.0 ? draw(row, logits, best) : greedy;
  row.logprob =
      static_cast<float>(static_cast<double>(row.logits[row.token]) - top - std::log(whole));
}

}  // namespace understudy
