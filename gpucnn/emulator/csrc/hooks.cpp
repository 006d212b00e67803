// What compiled kernels call: the entry points that -fsanitize=thread gives every memory access,
// those of -fsanitize=alignment,bounds, and the atomics of the shim. No sanitizer runtime is
// linked.
#include <cstdio>

#include "check.h"
#include "count.h"

using namespace emulator;

#define HOOKS(size)                                                                                \
    EXPORT void __tsan_read##size(Address a) { check_access(a, size, kRead, CALLER); }             \
    EXPORT void __tsan_write##size(Address a) { check_access(a, size, kWrite, CALLER); }           \
    EXPORT void __tsan_volatile_read##size(Address a) { check_access(a, size, kRead, CALLER); }    \
    EXPORT void __tsan_volatile_write##size(Address a) { check_access(a, size, kWrite, CALLER); }  \
    EXPORT void __tsan_unaligned_read##size(Address a) { check_access(a, size, kRead, CALLER); }   \
    EXPORT void __tsan_unaligned_write##size(Address a) { check_access(a, size, kWrite, CALLER); } \
    EXPORT void __tsan_unaligned_volatile_read##size(Address a) {                                  \
        check_access(a, size, kRead, CALLER);                                                      \
    }                                                                                              \
    EXPORT void __tsan_unaligned_volatile_write##size(Address a) {                                 \
        check_access(a, size, kWrite, CALLER);                                                     \
    }

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

EXPORT void __tsan_read_range(Address a, u64 n) {
    if (n) check_access(a, static_cast<u32>(n), kRead, CALLER);
}
EXPORT void __tsan_write_range(Address a, u64 n) {
    if (n) check_access(a, static_cast<u32>(n), kWrite, CALLER);
}
EXPORT void __tsan_vptr_read(Address) {}
EXPORT void __tsan_vptr_update(Address, Address) {}
EXPORT void __tsan_func_entry(Address) {}
EXPORT void __tsan_func_exit() {}
EXPORT void __tsan_init() {}

namespace {

struct SourceLocation {
    const char* file;
    u32 line, column;
};
struct TypeDescriptor {
    u16 kind, info;
    char name[1];
};
struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    u8 log_alignment, check;
};
struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

// A misaligned address outside every array is reported as the latter.
void check_inside(Address address, Address pc) {
    if (address < 4096) check_access(address, 1, kRead, pc);
}

void misaligned(const TypeMismatch* data, Address address, Address pc) {
    if (address - stacks.begin < stacks.end - stacks.begin && !state.launch->check) return;
    check_inside(address, pc);
    Fault& fault = state.fault;
    fault.address = address;
    fault.size = 1u << data->log_alignment;
    fault.is_write = data->check == 1;
    fault.index = -1;
    auto place = [&](const Tracked& t, Space space, std::int32_t index, u64 begin, u64 extent) {
        fault.space = space;
        fault.index = index;
        fault.offset = static_cast<std::int64_t>(address - t.base - begin);
        fault.extent = extent;
    };
    if (address - arena.base < arena.bytes) {
        const int r = region_of_granule[(address - arena.base) >> kGranuleShift] - 1;
        if (r >= 0) place(arena, kGlobal, r, region_begin[r], regions[r].bytes);
    } else if (address - static_shared.base < static_shared.bytes) {
        const int v = variable_of_word[(address - static_shared.base) >> 2] - 1;
        if (v >= 0) place(static_shared, kStaticShared, v, variables[v].offset, variables[v].bytes);
    } else if (address - dynamic_shared.base < kDynamicSharedBytes) {
        place(dynamic_shared, kDynamicShared, 0, 0, dynamic_shared.bytes);
    }
    std::snprintf(fault.text, sizeof fault.text, "%s", data->type->name);
    raise_fault(kMisaligned, pc);
}

void index_out_of_bounds(const OutOfBounds* data, u64 index, Address pc) {
    const u32 bits = 1u << (data->index->info >> 1);
    auto value = static_cast<std::int64_t>(index);
    if ((data->index->info & 1) && bits < 64)
        value = static_cast<std::int64_t>(index << (64 - bits)) >> (64 - bits);
    std::snprintf(state.fault.text, sizeof state.fault.text, "index %lld of %s",
                  static_cast<long long>(value), data->array->name);
    state.fault.index = -1;
    state.fault.size = data->location.column;
    raise_fault(kOutOfBounds, pc);
}

template <class T, class F>
T atomic(T* p, Address pc, F update) {
    if (state.launch->check) {
        const auto address = reinterpret_cast<Address>(p);
        if (address % sizeof(T)) {
            static const struct {
                u16 kind, info;
                char name[8];
            } type{0, 0, "'word'"};
            const TypeMismatch data{{},
                                    reinterpret_cast<const TypeDescriptor*>(&type),
                                    sizeof(T) == 8 ? u8{3} : u8{2},
                                    1};
            misaligned(&data, address, pc);
        }
        check_access(address, sizeof(T), kAtomic, pc);
        if (state.launch->count) count_access(address, sizeof(T), kAtomic, pc);
        if (address - arena.base < arena.bytes) publish_atomic(address);
    }
    const T old = *p;
    *p = update(old);
    return old;
}

}  // namespace

EXPORT void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, Address a) {
    misaligned(data, a, CALLER);
}
EXPORT void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* data, Address a) {
    misaligned(data, a, CALLER);
}
EXPORT void __ubsan_handle_out_of_bounds(const OutOfBounds* data, u64 i) {
    index_out_of_bounds(data, i, CALLER);
}
EXPORT void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, u64 i) {
    index_out_of_bounds(data, i, CALLER);
}

// Explicit memcpy and memset in a kernel; the compiler's own copies come through the hooks above.
EXPORT void gpucnn_check_range(Address a, u64 n, u32 is_write) {
    const Access access = is_write ? kWrite : kRead;
    if (n && state.launch->check) check_access(a, static_cast<u32>(n), access, CALLER);
    if (n && state.launch->count) count_access(a, n, access, CALLER);
}

#define ATOMICS(T, name)                                               \
    EXPORT T gpucnn_atomic_add_##name(T* p, T v) {                     \
        return atomic(p, CALLER, [=](T o) { return T(o + v); });       \
    }                                                                  \
    EXPORT T gpucnn_atomic_and_##name(T* p, T v) {                     \
        return atomic(p, CALLER, [=](T o) { return T(o & v); });       \
    }                                                                  \
    EXPORT T gpucnn_atomic_or_##name(T* p, T v) {                      \
        return atomic(p, CALLER, [=](T o) { return T(o | v); });       \
    }                                                                  \
    EXPORT T gpucnn_atomic_xor_##name(T* p, T v) {                     \
        return atomic(p, CALLER, [=](T o) { return T(o ^ v); });       \
    }                                                                  \
    EXPORT T gpucnn_atomic_exch_##name(T* p, T v) {                    \
        return atomic(p, CALLER, [=](T) { return v; });                \
    }                                                                  \
    EXPORT T gpucnn_atomic_min_##name(T* p, T v) {                     \
        return atomic(p, CALLER, [=](T o) { return v < o ? v : o; });  \
    }                                                                  \
    EXPORT T gpucnn_atomic_max_##name(T* p, T v) {                     \
        return atomic(p, CALLER, [=](T o) { return v > o ? v : o; });  \
    }                                                                  \
    EXPORT T gpucnn_atomic_cas_##name(T* p, T c, T v) {                \
        return atomic(p, CALLER, [=](T o) { return o == c ? v : o; }); \
    }

using Long = long long;
using UnsignedLong = unsigned long long;

ATOMICS(std::int32_t, i32)
ATOMICS(u32, u32)
ATOMICS(Long, i64)
ATOMICS(UnsignedLong, u64)

// Returns the word as soon as one of these bits of it is no longer what it was.
EXPORT u32 gpucnn_wait_for_change(u32* p, u32 bits, u32 old) {
    const Address pc = CALLER;
    for (;;) {
        const u32 now = atomic(p, pc, [](u32 o) { return o; });
        if ((now ^ old) & bits) return now;
        wait_at_grid(reinterpret_cast<Address>(p), bits, old, pc);
    }
}

EXPORT u32 gpucnn_atomic_inc_u32(u32* p, u32 v) {
    return atomic(p, CALLER, [=](u32 o) { return o >= v ? 0 : o + 1; });
}
EXPORT u32 gpucnn_atomic_dec_u32(u32* p, u32 v) {
    return atomic(p, CALLER, [=](u32 o) { return o == 0 || o > v ? v : o - 1; });
}
