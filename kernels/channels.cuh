// V consecutive channels of a pixel as one value, V = 4 where C is a multiple of 4, else 1.
// Four channels move as 16 bytes (8 in bfloat16, which is widened when it is read and rounded when it
// is written) where the array is aligned, else one by one.

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float2 Two;
    typedef float4 Four;
};
template <>
struct VectorOf<int> {
    typedef int2 Two;
    typedef int4 Four;
};

template <class T, int V>
struct Channels {
    T at[V];
};

template <int V, class T>
__device__ __forceinline__ Channels<T, V> load_channels(const T* pointer) {
    Channels<T, V> v;
    if (V == 4 && aligned16(pointer)) {
        const auto u = *reinterpret_cast<const typename VectorOf<T>::Four*>(pointer);
        v.at[0] = u.x, v.at[1 % V] = u.y, v.at[2 % V] = u.z, v.at[3 % V] = u.w;
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) v.at[i] = pointer[i];
    }
    return v;
}

template <class T, int V>
__device__ __forceinline__ void store_channels(T* pointer, const Channels<T, V>& v) {
    if (V == 4 && aligned16(pointer)) {
        typename VectorOf<T>::Four u;
        u.x = v.at[0], u.y = v.at[1 % V], u.z = v.at[2 % V], u.w = v.at[3 % V];
        *reinterpret_cast<typename VectorOf<T>::Four*>(pointer) = u;
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) pointer[i] = v.at[i];
    }
}

template <class T, int V>
__device__ __forceinline__ Channels<T, V> all_channels(T value) {
    Channels<T, V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v.at[i] = value;
    return v;
}

// V = 1, 2 or a multiple of 4 channels of an array that is known to be aligned: 16 bytes per access (8 of
// two), and no branch between one access and the next.
template <int V, class T>
__device__ __forceinline__ Channels<T, V> load_vector(const T* pointer) {
    Channels<T, V> v;
    if (V == 1) v.at[0] = *pointer;
    if (V == 2) {
        const auto u = *reinterpret_cast<const typename VectorOf<T>::Two*>(pointer);
        v.at[0] = u.x, v.at[1 % V] = u.y;
    }
#pragma unroll
    for (int i = 0; i + 4 <= V; i += 4) {
        const auto u = *reinterpret_cast<const typename VectorOf<T>::Four*>(pointer + i);
        v.at[i % V] = u.x, v.at[(i + 1) % V] = u.y, v.at[(i + 2) % V] = u.z, v.at[(i + 3) % V] = u.w;
    }
    return v;
}

template <class T, int V>
__device__ __forceinline__ void store_vector(T* pointer, const Channels<T, V>& v) {
    if (V == 1) *pointer = v.at[0];
    if (V == 2) {
        typename VectorOf<T>::Two u;
        u.x = v.at[0], u.y = v.at[1 % V];
        *reinterpret_cast<typename VectorOf<T>::Two*>(pointer) = u;
    }
#pragma unroll
    for (int i = 0; i + 4 <= V; i += 4) {
        typename VectorOf<T>::Four u;
        u.x = v.at[i % V], u.y = v.at[(i + 1) % V], u.z = v.at[(i + 2) % V], u.w = v.at[(i + 3) % V];
        *reinterpret_cast<typename VectorOf<T>::Four*>(pointer + i) = u;
    }
}

// load_vector and store_vector of an array in bfloat16, 8 bytes per access (4 of two).
template <int V>
__device__ __forceinline__ Channels<float, V> load_vector(const bfloat16* pointer) {
    Channels<float, V> v;
    if (V == 1) v.at[0] = to_float(*pointer);
    if (V == 2) {
        const unsigned word = *reinterpret_cast<const unsigned*>(pointer);
        v.at[0] = __uint_as_float(word << 16), v.at[1 % V] = __uint_as_float(word & 0xffff0000u);
    }
#pragma unroll
    for (int i = 0; i + 4 <= V; i += 4) {
        const float4 u = read_four(pointer + i);
        v.at[i % V] = u.x, v.at[(i + 1) % V] = u.y, v.at[(i + 2) % V] = u.z, v.at[(i + 3) % V] = u.w;
    }
    return v;
}

template <int V>
__device__ __forceinline__ void store_vector(bfloat16* pointer, const Channels<float, V>& v) {
    if (V == 1) set(*pointer, v.at[0]);
    if (V == 2) *reinterpret_cast<unsigned*>(pointer) = bfloat16_pair(v.at[0], v.at[1 % V]);
#pragma unroll
    for (int i = 0; i + 4 <= V; i += 4)
        write_four(pointer + i, make_float4(v.at[i % V], v.at[(i + 1) % V], v.at[(i + 2) % V],
                                            v.at[(i + 3) % V]));
}

template <int V>
__device__ __forceinline__ Channels<float, V> load_channels(const bfloat16* pointer) {
    if (V == 4 && aligned4(pointer)) return load_vector<V>(pointer);
    Channels<float, V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v.at[i] = to_float(pointer[i]);
    return v;
}

template <int V>
__device__ __forceinline__ void store_channels(bfloat16* pointer, const Channels<float, V>& v) {
    if (V == 4 && aligned4(pointer)) {
        store_vector(pointer, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) set(pointer[i], v.at[i]);
}
