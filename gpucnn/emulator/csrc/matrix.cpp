// Matrix instructions: one rendezvous of a full warp, after which the last lane to arrive computes
// for all. Fragment layouts are those of "Matrix fragments" in NVIDIA's PTX ISA, chapter 9.7.14.
#include <cstring>

#include "runtime.h"

namespace emulator {
namespace {

// Mirrored in include/gpucnn_matrix.h.
enum Shape : u32 { kTf32_16x8x8, kBf16_16x8x16, kF16_16x8x16, kF16_16x8x8 };

struct Multiply {  // what a lane hands over: d is also the addend
    float* d;
    const u32* a;
    const u32* b;
};

struct Load {  // the row that a lane read, and where its part of the matrices goes
    const u32* row;
    u32* to;
};

float value_of_word(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

u32 word_of_value(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// Exponents in place of those of zero and of infinity or NaN, also after two of them are added.
constexpr int kZero = -4096, kNotFinite = 16384;
constexpr int kSmallest = -126;  // exponent of the smallest normal float, and of those below it

// An operand: its value, and its exponent as the format has it. A subnormal number has that of the
// smallest normal one.
struct Element {
    double value;
    int exponent;
};

Element of_float(u32 bits) {
    const int field = bits >> 23 & 255;
    const int exponent = field == 255 ? kNotFinite : field ? field - 127 : kSmallest;
    return {value_of_word(bits), bits << 1 ? exponent : kZero};
}

Element of_half(u32 bits) {
    const int field = bits >> 10 & 31;
    const u32 sign = bits >> 15 << 31, mantissa = bits & 1023;
    if (field == 31)
        return {value_of_word(sign | 0x7F800000u | mantissa << 13), kNotFinite};
    if (field == 0) {
        const double value = mantissa * 0x1p-24;
        return {sign ? -value : value, mantissa ? -14 : kZero};
    }
    return {value_of_word(sign | static_cast<u32>(field + 112) << 23 | mantissa << 13), field - 15};
}

// Element e of a register. The tensor core reads 19 of the 32 bits of a TF32 operand.
Element element(Shape shape, u32 word, u32 e) {
    if (shape == kTf32_16x8x8) return of_float(word & 0xFFFFE000u);
    const u32 bits = e ? word >> 16 : word & 0xFFFFu;
    return shape == kBf16_16x8x16 ? of_float(bits << 16) : of_half(bits);
}

u32 terms(u32 shape) { return shape == kTf32_16x8x8 || shape == kF16_16x8x8 ? 8 : 16; }

// d += a b as an A100 computes it. The k are added in blocks, of 4 in TF32 and of 8 in 16 bits. The
// products of a block are exact, their exponents the sums of their factors'. They and d are cut off,
// toward zero, 24 bits below the largest exponent among them, are added exactly, and the sum is cut off
// to a float. Where anything is infinite or NaN, so is the sum.
//
// Found by comparison with the hardware, to the bit: P. Xie et al., "MMA-Sim: Bit-Accurate Reference
// Model of Tensor Cores and Matrix Cores" (2025); F. Khattak and M. Mikaitis, "Accurate Models of
// NVIDIA Tensor Cores" (2025); first seen by M. Fasi et al., "Numerical behavior of NVIDIA tensor
// cores" (2021). sm_86 and sm_89 do the same. Of what follows sm_80 this loses the most: sm_90 to
// sm_120 keep 25 bits and add twice as many k at once.
constexpr int kKept = 24;

double power_of_two(int exponent) {
    const u64 bits = static_cast<u64>(exponent + 1023) << 52;
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

struct Row {  // of b
    double value[8];
    int exponent[8];
};

// Adds the products of one block to N neighbours of a row of d, from column n on; false, and nothing
// done, where one of them is infinite or NaN.
template <u32 BLOCK, u32 N>
bool add_finite(const Element* a, const Row* b, u32 n, float* d) {
    int largest[N], sum[N];
    double up[N];
    for (u32 i = 0; i < N; ++i) {
        const int field = word_of_value(d[i]) >> 23 & 255;
        largest[i] = field == 255 ? kNotFinite : field ? field - 127 : kSmallest;
    }
    for (u32 k = 0; k < BLOCK; ++k)
        for (u32 i = 0; i < N; ++i) {
            const int exponent = a[k].exponent + b[k].exponent[n + i];
            largest[i] = exponent > largest[i] ? exponent : largest[i];
        }
    int all = 0;
    for (u32 i = 0; i < N; ++i) all = largest[i] > all ? largest[i] : all;
    if (all >= kNotFinite + kZero) return false;

    for (u32 i = 0; i < N; ++i) up[i] = power_of_two(kKept - largest[i]);
    for (u32 i = 0; i < N; ++i) sum[i] = static_cast<int>(d[i] * up[i]);
    for (u32 k = 0; k < BLOCK; ++k)
        for (u32 i = 0; i < N; ++i)
            sum[i] += static_cast<int>(a[k].value * b[k].value[n + i] * up[i]);
    // Only a subnormal sum has a bit below those of its float that the last step would not cut off.
    for (u32 i = 0; i < N; ++i) sum[i] -= largest[i] == kSmallest ? sum[i] % 2 : 0;
    double exact[N];
    u64 bits[N];
    for (u32 i = 0; i < N; ++i) exact[i] = sum[i] * power_of_two(largest[i] - kKept);
    std::memcpy(bits, exact, sizeof bits);
    for (u32 i = 0; i < N; ++i) bits[i] &= ~u64{0} << 29;  // 23 bits of mantissa stay
    std::memcpy(exact, bits, sizeof bits);
    for (u32 i = 0; i < N; ++i) d[i] = static_cast<float>(exact[i]);
    return true;
}

template <u32 BLOCK>
void add_block(const Element* a, const Row* b, float* d) {
    if (add_finite<BLOCK, 8>(a, b, 0, d)) return;
    for (u32 n = 0; n < 8; ++n) {
        if (add_finite<BLOCK, 1>(a, b, n, d + n)) continue;
        double sum = d[n];
        for (u32 k = 0; k < BLOCK; ++k) sum += a[k].value * b[k].value[n];
        d[n] = static_cast<float>(sum);
    }
}

// Lane 4 g + t holds
//   a: rows g and g + 8; columns t (TF32: one to a register) or 2t, 2t + 1; and those half a k later
//   b: column g; the same k.        d: rows g and g + 8; columns 2t and 2t + 1
void multiply(Shape shape, Thread* lanes) {
    const u32 per_word = shape == kTf32_16x8x8 ? 1 : 2;
    const u32 K = terms(shape);
    Element a[16][16];
    Row b[16];
    float d[16][8];
    for (u32 lane = 0; lane < 32; ++lane) {
        const auto& own = *reinterpret_cast<const Multiply*>(lanes[lane].value);
        const u32 g = lane / 4, t = lane % 4;
        for (u32 half = 0; half * 4 * per_word < K; ++half)
            for (u32 e = 0; e < per_word; ++e) {
                const u32 k = (half * 4 + t) * per_word + e;
                a[g][k] = element(shape, own.a[2 * half], e);
                a[g + 8][k] = element(shape, own.a[2 * half + 1], e);
                const Element of_b = element(shape, own.b[half], e);
                b[k].value[g] = of_b.value;
                b[k].exponent[g] = of_b.exponent;
            }
        for (u32 i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = own.d[i];
    }
    for (u32 row = 0; row < 16; ++row)
        if (shape == kTf32_16x8x8) {
            add_block<4>(a[row], b, d[row]);
            add_block<4>(a[row] + 4, b + 4, d[row]);
        } else {
            for (u32 k = 0; k < K; k += 8) add_block<8>(a[row] + k, b + k, d[row]);
        }
    for (u32 lane = 0; lane < 32; ++lane) {
        const auto& own = *reinterpret_cast<const Multiply*>(lanes[lane].value);
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) own.d[i] = d[g + i / 2 * 8][2 * t + i % 2];
    }
}

// Four 8x8 matrices of 16-bit elements; lane 8 j + i has row i of matrix j. Lane 4 r + c receives
// elements 2c and 2c + 1 of row r of each, or of column r if transposed.
void load(bool transposed, Thread* lanes) {
    for (u32 lane = 0; lane < 32; ++lane) {
        const u32 r = lane / 4, c = lane % 4;
        for (u32 j = 0; j < 4; ++j) {
            auto row = [&](u32 i) {
                return reinterpret_cast<const Load*>(lanes[8 * j + i].value)->row;
            };
            auto half = [&](u32 i, u32 e) { return row(i)[e / 2] >> e % 2 * 16 & 0xFFFFu; };
            reinterpret_cast<const Load*>(lanes[lane].value)->to[j] =
                transposed ? half(2 * c, r) | half(2 * c + 1, r) << 16 : row(r)[c];
        }
    }
}

}  // namespace

void complete_multiply(Thread* lanes) { multiply(static_cast<Shape>(lanes[0].argument), lanes); }

u64 multiply_flops(u32 shape) { return u64{2} * 16 * 8 * terms(shape); }

void complete_load(Thread* lanes) { load(lanes[0].argument != 0, lanes); }

}  // namespace emulator
