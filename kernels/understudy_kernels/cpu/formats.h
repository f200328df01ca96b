// How each format's weights lie in memory. A group is 16 output rows; within it, units of inputs
// follow one another: 32 of them (256 for the K formats). Scales come first, 16 rows side by side;
// then bytes in quads: four inputs of row 0, the same four of row 1, and so on, 64 bytes.
// Nibbles hold quad 2v in the low and quad 2v + 1 in the high half of byte run v.
// kernels/understudy_kernels/packing.py writes this, reference/linear.py reads it slowly.
#pragma once
#include "lanes.h"

namespace understudy {
namespace {

constexpr int kPairs = 4;  // pairs of quads in a block

struct Pair {
  Ints first, second;
};

INLINE Pair nibbles(const uint8_t* run) {
  const Ints bytes = load_bytes(run);
  return {masked_shift<0>(bytes, 15), masked_shift<4>(bytes, 15)};
}
INLINE Floats halves_at(const uint8_t* p) {
  return load_half(reinterpret_cast<const uint16_t*>(p));
}

// weight = scale * quantised + offset, for each of `kHalves` equal parts of a block.
struct Scales {
  Floats scale[2], offset[2];
};

struct FormatQ8_0 {
  static constexpr Kind kKind = kSigned8;
  static constexpr int kHalves = 1, kBlocks = 1, kBytes = 544;
  static constexpr bool kHasOffset = kSignedBytesAreOffset;
  INLINE Pair pair(const uint8_t* unit, int, int v) {
    return {load_bytes(unit + 32 + 128 * v), load_bytes(unit + 96 + 128 * v)};
  }
  INLINE void scales(const uint8_t* unit, int, Scales& s) {
    s.scale[0] = halves_at(unit);
    s.offset[0] = multiply(s.scale[0], splat(-128.0f));
  }
};

struct FormatQ4_0 {
  static constexpr Kind kKind = kUnsigned4;
  static constexpr int kHalves = 1, kBlocks = 1, kBytes = 288;
  static constexpr bool kHasOffset = true;
  INLINE Pair pair(const uint8_t* unit, int, int v) { return nibbles(unit + 32 + 64 * v); }
  INLINE void scales(const uint8_t* unit, int, Scales& s) {
    s.scale[0] = halves_at(unit);
    s.offset[0] = multiply(s.scale[0], splat(-8.0f));
  }
};

struct FormatQ4_1 {
  static constexpr Kind kKind = kUnsigned4;
  static constexpr int kHalves = 1, kBlocks = 1, kBytes = 320;
  static constexpr bool kHasOffset = true;
  INLINE Pair pair(const uint8_t* unit, int, int v) { return nibbles(unit + 64 + 64 * v); }
  INLINE void scales(const uint8_t* unit, int, Scales& s) {
    s.scale[0] = halves_at(unit);
    s.offset[0] = halves_at(unit + 32);
  }
};

struct FormatQ4_K {
  static constexpr Kind kKind = kUnsigned4;
  static constexpr int kHalves = 1, kBlocks = 8, kBytes = 2368;
  static constexpr bool kHasOffset = true;
  INLINE const uint8_t* sub(const uint8_t* unit, int block) { return unit + 64 + 288 * block; }
  INLINE Pair pair(const uint8_t* unit, int block, int v) {
    return nibbles(sub(unit, block) + 32 + 64 * v);
  }
  INLINE void scales(const uint8_t* unit, int block, Scales& s) {
    s.scale[0] = multiply(halves_at(unit), load_unsigned8(sub(unit, block)));
    const Floats least = multiply(halves_at(unit + 32), load_unsigned8(sub(unit, block) + 16));
    s.offset[0] = multiply(least, splat(-1.0f));
  }
};

struct FormatQ6_K {
  static constexpr Kind kKind = kUnsigned6;
  static constexpr int kHalves = 2, kBlocks = 8, kBytes = 3360;
  static constexpr bool kHasOffset = true;
  INLINE const uint8_t* sub(const uint8_t* unit, int block) { return unit + 32 + 416 * block; }
  INLINE Pair pair(const uint8_t* unit, int block, int v) {
    const uint8_t* start = sub(unit, block) + 32;
    const Pair low = nibbles(start + 64 * v);
    // Two upper bits of quads 0..3 lie in one run, those of quads 4..7 in the next.
    const Ints upper = load_bytes(start + 256 + 64 * (v / 2));
    const Ints first = v % 2 ? masked_shift<4>(upper, 3) : masked_shift<0>(upper, 3);
    const Ints second = v % 2 ? masked_shift<6>(upper, 3) : masked_shift<2>(upper, 3);
    return {or_shifted<4>(low.first, first), or_shifted<4>(low.second, second)};
  }
  INLINE void scales(const uint8_t* unit, int block, Scales& s) {
    const Floats super = halves_at(unit);
    const int8_t* own = reinterpret_cast<const int8_t*>(sub(unit, block));
    for (int half = 0; half < 2; ++half) {
      s.scale[half] = multiply(super, load_signed8(own + 16 * half));
      s.offset[half] = multiply(s.scale[half], splat(-32.0f));
    }
  }
};

template <class F>
INLINE const uint8_t* unit_of(const uint8_t* group, int64_t block) {
  return group + block / F::kBlocks * F::kBytes;
}
template <class F>
INLINE int sub_of(int64_t block) {
  return static_cast<int>(block % F::kBlocks);
}

template <class F, int kByte>
INLINE Floats byte_value(Ints quad) {
  if constexpr (F::kKind == kSigned8) return signed_byte<kByte>(quad);
  return unsigned_byte<kByte>(quad);
}
template <class F>
INLINE Floats weight_of(Floats value, const Scales& s, int half) {
  if constexpr (F::kKind == kSigned8) return multiply(value, s.scale[half]);
  return fma(value, s.scale[half], s.offset[half]);
}

// Writes weights of one block as floats (32, 16).
template <class F>
INLINE void dequantise(const uint8_t* group, int64_t block, float* panel) {
  const uint8_t* unit = unit_of<F>(group, block);
  Scales s;
  F::scales(unit, sub_of<F>(block), s);
#pragma GCC unroll 4
  for (int v = 0; v < kPairs; ++v) {
    const Pair pair = F::pair(unit, sub_of<F>(block), v);
    const int half = v * F::kHalves / kPairs;
    const auto put = [&](Floats value, int row) {
      store(panel + (8 * v + row) * kLanes, weight_of<F>(value, s, half));
    };
    put(byte_value<F, 0>(pair.first), 0), put(byte_value<F, 1>(pair.first), 1);
    put(byte_value<F, 2>(pair.first), 2), put(byte_value<F, 3>(pair.first), 3);
    put(byte_value<F, 0>(pair.second), 4), put(byte_value<F, 1>(pair.second), 5);
    put(byte_value<F, 2>(pair.second), 6), put(byte_value<F, 3>(pair.second), 7);
  }
}

constexpr int64_t kPanelFloats = kBlock * kLanes;

INLINE void panel_of(int64_t format, const uint8_t* group, int64_t block, float* panel) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(group) + block * kPanelFloats;
  switch (format) {
    case F32:
      __builtin_memcpy(panel, reinterpret_cast<const float*>(group) + block * kPanelFloats,
                       kPanelFloats * sizeof(float));
      break;
    case F16:
      for (int64_t i = 0; i < kPanelFloats; i += kLanes) store(panel + i, load_half(halves + i));
      break;
    case BF16:
      for (int64_t i = 0; i < kPanelFloats; i += kLanes) store(panel + i, load_brain(halves + i));
      break;
    case Q8_0:
      dequantise<FormatQ8_0>(group, block, panel);
      break;
    case Q4_0:
      dequantise<FormatQ4_0>(group, block, panel);
      break;
    case Q4_1:
      dequantise<FormatQ4_1>(group, block, panel);
      break;
    case Q4_K:
      dequantise<FormatQ4_K>(group, block, panel);
      break;
    case Q6_K:
      dequantise<FormatQ6_K>(group, block, panel);
      break;
  }
}

INLINE int64_t group_bytes(int64_t format, int64_t num_in) {
  constexpr int64_t block_bytes[] = {2048, 1024, 1024, 544, 288, 320, 0, 0};
  if (format == Q4_K) return num_in / 256 * FormatQ4_K::kBytes;
  if (format == Q6_K) return num_in / 256 * FormatQ6_K::kBytes;
  return (num_in + kBlock - 1) / kBlock * block_bytes[format];
}

}  // namespace
}  // namespace understudy
