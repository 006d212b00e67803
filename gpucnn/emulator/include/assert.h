// Also stands in for the C header, whose assert would end the process. Included again and again.
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) \
    ((condition) ? (void)0 : gpucnn_assert_failed(#condition, __FILE__, __LINE__))
#endif
