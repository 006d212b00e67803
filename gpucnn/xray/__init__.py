"""The x-ray of a kernel: what can be known of it without running it on a GPU.

The compiler says registers and shared memory, the disassembler the instructions, the emulator what
is read, written, computed and waited for; from them follow occupancy and a prediction of the time.
"""
