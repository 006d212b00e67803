// Stack switching: the innermost operation of the emulator, so it saves what the ABI asks for and
// nothing else. Floating-point control words never change between fibers.
#pragma once

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT  // may also be defined by hand, to try the portable way
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>

#include <new>
#endif

namespace emulator {

#if defined(EMULATOR_UCONTEXT)

// swapcontext enters the kernel for the signal mask: correct everywhere, but some 50 times slower.
inline void* make_fiber(char* top, void (*entry)()) {
    constexpr std::size_t kReserved = (sizeof(ucontext_t) + 63) / 64 * 64;
    auto* context = new (top - kReserved) ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = top - 128 * 1024;
    context->uc_stack.ss_size = 128 * 1024 - kReserved;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
inline void switch_stack(void** save, void* load) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(load));
}

#elif defined(__x86_64__)

extern "C" void gpucnn_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.local gpucnn_switch_stack
.type gpucnn_switch_stack, @function
gpucnn_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size gpucnn_switch_stack, .-gpucnn_switch_stack
)");

inline void* make_fiber(char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top) - 2;  // entry starts with sp % 16 == 8, as after call
    *sp = reinterpret_cast<void*>(entry);
    return sp - 6;
}
inline void switch_stack(void** save, void* load) { gpucnn_switch_stack(save, load); }

#elif defined(__aarch64__)

extern "C" void gpucnn_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.local gpucnn_switch_stack
.type gpucnn_switch_stack, %function
gpucnn_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size gpucnn_switch_stack, .-gpucnn_switch_stack
)");

inline void* make_fiber(char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(top) - 20;
    sp[10] = nullptr;
    sp[11] = reinterpret_cast<void*>(entry);
    return sp;
}
inline void switch_stack(void** save, void* load) { gpucnn_switch_stack(save, load); }

#endif

}  // namespace emulator
