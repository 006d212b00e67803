// The loop of an optimizer step: a thread owns four consecutive elements of the parameters p, of
// their gradients g and of STATES state buffers, and moves each as 16 bytes where it is aligned.
// step(p, state, g) updates one element in place; state is an array of STATES floats. A null state
// buffer reads as 0 and is not written. Any n.

template <int STATES, class Step>
__device__ __forceinline__ void update_four(
    float* p, float* const (&state)[STATES], const float* g, unsigned n, Step step) {
    const unsigned i = first_of_four();
    if (i >= n) return;
    const float4 p4 = load_four(p, i, n), g4 = load_four(g, i, n);
    float parameters[4] = {p4.x, p4.y, p4.z, p4.w};
    const float gradients[4] = {g4.x, g4.y, g4.z, g4.w};
    float values[4][STATES];
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
        const float4 v = state[s] ? load_four(state[s], i, n) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        values[0][s] = v.x, values[1][s] = v.y, values[2][s] = v.z, values[3][s] = v.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) step(parameters[j], values[j], gradients[j]);
    store_four(p, i, n, make_float4(parameters[0], parameters[1], parameters[2], parameters[3]));
#pragma unroll
    for (int s = 0; s < STATES; ++s)
        if (state[s])
            store_four(state[s], i, n,
                       make_float4(values[0][s], values[1][s], values[2][s], values[3][s]));
}
