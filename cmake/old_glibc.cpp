// What this compiler's libstdc++ asks of a newer glibc than the one that a wheel is linked for.

extern "C" {

// glibc 2.32: whether the process has one thread. Without it all counters are atomic.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// glibc 2.18: destroys a thread's objects when it ends. In 2.17 they stay until the process ends.
__attribute__((weak)) int __cxa_thread_atexit_impl(void (*destroy)(void*), void* object,
                                                   void* library);

__attribute__((visibility("hidden"))) int __cxa_thread_atexit(void (*destroy)(void*), void* object,
                                                              void* library) {
  if (__cxa_thread_atexit_impl == nullptr) return 0;
  return __cxa_thread_atexit_impl(destroy, object, library);
}

}  // extern "C"
