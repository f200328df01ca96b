// Runs the AVX2 kernels and the emulated AVX-512 ones on the same input and compares the results.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "api.h"

using namespace understudy;

static std::mt19937 random_bits(7);
static int num_failures = 0;

static std::vector<float> normal(size_t count, float scale) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random_bits);
  return values;
}

static void expect(const char* what, int64_t format, const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  float worst = 0.0f, scale = 1e-6f;
  for (size_t i = 0; i < a.size(); ++i) {
    scale = std::fmax(scale, std::fabs(a[i]));
    const float apart = std::fabs(a[i] - b[i]);
    worst = apart <= worst ? worst : apart;  // what is not a number is the worst
  }
  if (worst <= tolerance * scale) return;
  std::printf("%s of format %d differs by %g of %g\n", what, static_cast<int>(format), worst, scale);
  ++num_failures;
}

// Random bytes with the scales (float16, where the format keeps them) made small and finite.
static std::vector<uint8_t> packed(int64_t format, int64_t num_groups, int64_t num_in) {
  constexpr int64_t unit_bytes[] = {2048, 1024, 1024, 544, 288, 320, 2368, 3360};
  const int64_t units = num_groups * num_in / (format >= Q4_K ? 256 : 32);
  std::vector<uint8_t> bytes(units * unit_bytes[format]);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_bits());
  const bool has_two = format == Q4_1 || format == Q4_K;
  for (int64_t unit = 0; unit < units; ++unit) {
    uint8_t* start = bytes.data() + unit * unit_bytes[format];
    if (format == F32) {
      const auto values = normal(512, 0.1f);
      std::memcpy(start, values.data(), 2048);
      continue;
    }
    const int64_t count = format < Q8_0 ? 512 : has_two ? 32 : 16;
    for (int64_t i = 0; i < count; ++i) start[2 * i + 1] = format == BF16 ? 0x3c : 0x18 | (start[2 * i + 1] & 0x81);
  }
  return bytes;
}

static void compare_linear(const Kernels& a, const Kernels& b, int64_t format, int64_t num_rows) {
  const int64_t num_groups = 6, num_in = 512, num_out = num_groups * kLanes - 3;
  const auto weights = packed(format, num_groups, num_in);
  const auto x = normal(num_rows * num_in, 1.0f);
  const Linear linear = {weights.data(), format, num_out, num_in};
  std::vector<float> results[2];
  for (int exact = format < Q8_0; exact < 2; ++exact) {
    for (int which = 0; which < 2; ++which) {
      const Kernels& kernels = which ? b : a;
      results[which].assign(num_rows * num_out, 0.0f);
      const Output to = {results[which].data(), num_out, nullptr, nullptr, 0};
      std::vector<QuantisedBlock> blocks(num_rows * num_in / kBlock);
      kernels.quantise(x.data(), num_in, 0, num_rows, num_in, num_rows, blocks.data());
      if (exact) {
        kernels.linear_exact(linear, x.data(), num_in, num_rows, to, 0, num_groups);
      } else {
        kernels.linear_fast(linear, blocks.data(), num_rows, to, 0, num_groups);
      }
    }
    // Only the offset of signed bytes rounds differently.
    expect(exact ? "linear_exact" : "linear_fast", format, results[0], results[1], exact ? 0.0f : 1e-5f);
  }
}

// Two rows are a few queries, sixteen are a prompt's; float16 is read from the lower half.
static void compare_attention(const Kernels& a, const Kernels& b, int64_t num_rows, int64_t dtype) {
  const int64_t num_blocks = 40, block_size = 16, dim = 48, heads = 3;
  auto keys = normal(num_blocks * block_size * dim, 1.0f), values = normal(num_blocks * block_size * dim, 1.0f);
  for (auto* cached : {&keys, &values}) {
    auto* halves = reinterpret_cast<uint16_t*>(cached->data());
    for (size_t i = 0; dtype == 2 && i < 2 * cached->size(); ++i) {
      halves[i] = static_cast<uint16_t>((random_bits() & 0x83ff) | 0x3800);
    }
  }
  const auto query = normal(num_rows * heads * dim, 1.0f);
  std::vector<int32_t> table(num_blocks), sequences(num_rows, 0), lengths(num_rows);
  for (int32_t i = 0; i < num_rows; ++i) lengths[i] = 301 - static_cast<int32_t>(num_rows) + i;
  for (int32_t i = 0; i < num_blocks; ++i) table[i] = (i * 7) % 40;
  std::vector<float> results[2];
  for (int which = 0; which < 2; ++which) {
    results[which].assign(num_rows * heads * dim, 0.0f);
    Attention attention = {};
    attention.cache = {keys.data(), values.data(), nullptr, nullptr, dtype, {block_size * dim, dim, dim}, {block_size * dim, dim, dim}, {}, {}, num_blocks, block_size, 1, dim, dim};
    attention.query = query.data(), attention.attended = results[which].data();
    attention.tables = table.data(), attention.sequences = sequences.data(), attention.lengths = lengths.data();
    attention.table_stride = num_blocks, attention.num_heads = heads, attention.scale = 0.15f;
    (which ? b : a).attend(attention, {0, num_rows, 0, 0, heads, 0, 2, nullptr});
  }
  expect("attend", dtype, results[0], results[1], 0.0f);
}

static void compare_latents(const Kernels& a, const Kernels& b, int64_t num_rows, int64_t dtype) {
  const int64_t num_blocks = 40, block_size = 16, rank = 48, rope = 12, heads = 5, width = rank + rope;
  const auto latents = normal(num_blocks * block_size * rank, 1.0f), keys = normal(num_blocks * block_size * rope, 1.0f);
  std::vector<float> stored[2] = {latents, latents}, stored_keys[2] = {keys, keys};
  const auto query = normal(num_rows * heads * width, 1.0f), compressed = normal(num_rows * width, 1.0f);
  const auto cosine = normal(num_rows * rope / 2, 1.0f), norm = normal(rank, 1.0f);
  std::vector<int32_t> table(num_blocks), sequences(num_rows, 0), lengths(num_rows);
  std::vector<int64_t> slots(num_rows);
  for (int32_t i = 0; i < num_rows; ++i) slots[i] = 3 * i, lengths[i] = 301 - static_cast<int32_t>(num_rows) + i;
  for (int32_t i = 0; i < num_blocks; ++i) table[i] = (i * 7) % 40;
  std::vector<float> attended[2], rotated[2];
  for (int which = 0; which < 2; ++which) {
    const Kernels& kernels = which ? b : a;
    attended[which].assign(num_rows * heads * rank, 0.0f), rotated[which].assign(num_rows * heads * width, 0.0f);
    Attention attention = {};
    attention.cache = {stored_keys[which].data(), stored[which].data(), nullptr, nullptr, dtype, {block_size * rope, rope, rope}, {block_size * rank, rank, rank}, {}, {}, num_blocks, block_size, 1, rope, rank};
    LatentRotation rotation = {};
    rotation.cache = attention.cache, rotation.query = query.data(), rotation.compressed = compressed.data();
    rotation.cosine = cosine.data(), rotation.sine = cosine.data(), rotation.slots = slots.data(), rotation.norm = norm.data();
    rotation.rotated = rotated[which].data(), rotation.num_heads = heads, rotation.nope_dim = rank;
    rotation.eps = 1e-5f, rotation.query_scale = 1.5f, rotation.latent_scale = 0.5f, rotation.is_interleaved = true;
    kernels.rotate_latent(rotation, 0, num_rows);
    attention.query = query.data(), attention.attended = attended[which].data();
    attention.tables = table.data(), attention.sequences = sequences.data(), attention.lengths = lengths.data();
    attention.table_stride = num_blocks, attention.num_heads = heads, attention.scale = 0.15f, attention.is_latent = true;
    kernels.attend_latent(attention, {0, num_rows, 0, 0, heads, 0, 2, nullptr});
  }
  expect("rotate_latent", dtype, rotated[0], rotated[1], 0.0f);
  expect("rotate_latent's cache", dtype, stored[0], stored[1], 0.0f);
  expect("attend_latent", dtype, attended[0], attended[1], 0.0f);
}

static void compare_multiply_back(const Kernels& a, const Kernels& b, int64_t format, int64_t num_rows) {
  const int64_t num_groups = 6, num_in = 512, num_out = num_groups * kLanes - 3;
  const auto weights = packed(format, num_groups, num_in);
  const auto x = normal(num_rows * num_out, 1.0f);
  std::vector<float> results[2];
  for (int which = 0; which < 2; ++which) {
    results[which].assign(num_rows * num_in, 0.0f);
    (which ? b : a).multiply_back({weights.data(), format, num_out, num_in}, x.data(), num_out, num_rows, results[which].data(), num_in);
  }
  expect("multiply_back", format, results[0], results[1], 0.0f);
}

int main() {
  const Kernels &a = *avx2_kernels(), &b = *avx512_kernels();
  for (int64_t format = 0; format < kNumFormats; ++format) {
    for (int64_t num_rows : {1, 2, 13, 40}) {
      compare_linear(a, b, format, num_rows);
      compare_multiply_back(a, b, format, num_rows);
    }
  }
  for (int64_t num_rows : {2, 16}) {
    for (int64_t dtype : {0, 2}) compare_attention(a, b, num_rows, dtype);
  }
  for (int64_t num_rows : {1, 7}) compare_latents(a, b, num_rows, 0);
  const auto x = normal(1000, 3.0f);
  std::vector<float> results[2];
  for (int which = 0; which < 2; ++which) {
    const Kernels& kernels = which ? b : a;
    results[which].assign(3000, 0.0f);
    kernels.rms_norm(x.data(), x.data(), 1000, 1e-5f, results[which].data());
    kernels.silu_multiply(x.data(), x.data(), 1000, results[which].data() + 1000);
    results[which][2000] = kernels.largest(x.data(), 999);
    results[which][2001] = static_cast<float>(kernels.sum_of_exponentials(x.data(), 999, 9.0f));
  }
  expect("elementwise", 0, results[0], results[1], 0.0f);
  if (num_failures == 0) std::printf("equal\n");
  return num_failures;
}
