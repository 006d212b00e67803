// The fibers' stacks: made once, used again by every block and launch.
#pragma once

#include "runtime.h"

namespace emulator {

// False if the address space for them cannot be reserved.
bool make_stacks();
// A fiber about to enter `entry`, on a free stack whose number it leaves in `stack`.
void* new_fiber(u32& stack, void (*entry)());
void release_stack(u32 stack);
// Abandons whatever fibers there are.
void release_all_stacks();

}  // namespace emulator
