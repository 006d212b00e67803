// Matrix instructions: one rendezvous of a full warp, after which the last lane to arrive computes
// for all. Fragment layouts are those of "Matrix fragments" in NVIDIA's PTX ISA, chapter 9.7.14.
#include <cmath>
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

float half_value(u32 bits) {
    const u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float sign = bits >> 15 & 1 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
    return sign * std::ldexp(static_cast<float>(mantissa | 1024), static_cast<int>(exponent) - 25);
}

float value_of_word(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Element e of a register. The tensor core reads 19 of the 32 bits of a TF32 operand.
float element(Shape shape, u32 word, u32 e) {
    if (shape == kTf32_16x8x8) return value_of_word(word & 0xFFFFE000u);
    const u32 bits = e ? word >> 16 : word & 0xFFFFu;
    return shape == kBf16_16x8x16 ? value_of_word(bits << 16) : half_value(bits);
}

u32 terms(u32 shape) { return shape == kTf32_16x8x8 || shape == kF16_16x8x8 ? 8 : 16; }

// d += a b, where lane 4 g + t holds
//   a: rows g and g + 8; columns t (TF32: one to a register) or 2t, 2t + 1; and those half a k later
//   b: column g; the same k.        d: rows g and g + 8; columns 2t and 2t + 1
// The products are exact; their sum and d are rounded once, where hardware keeps fewer bits.
void multiply(Shape shape, Thread* lanes) {
    const u32 per_word = shape == kTf32_16x8x8 ? 1 : 2;
    const u32 K = terms(shape);
    float a[16][16], b[16][8];
    for (u32 lane = 0; lane < 32; ++lane) {
        const auto& own = *reinterpret_cast<const Multiply*>(lanes[lane].value);
        const u32 g = lane / 4, t = lane % 4;
        for (u32 half = 0; half * 4 * per_word < K; ++half)
            for (u32 e = 0; e < per_word; ++e) {
                const u32 k = (half * 4 + t) * per_word + e;
                a[g][k] = element(shape, own.a[2 * half], e);
                a[g + 8][k] = element(shape, own.a[2 * half + 1], e);
                b[k][g] = element(shape, own.b[half], e);
            }
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        const auto& own = *reinterpret_cast<const Multiply*>(lanes[lane].value);
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = own.d[i];
            for (u32 k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
            own.d[i] = static_cast<float>(sum);
        }
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
