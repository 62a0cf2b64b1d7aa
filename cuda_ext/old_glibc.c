// A stand-in for libpthread.so.0 to link with, so that a library built here loads where glibc is older.
//
// glibc 2.34 took threads, dlopen and others into libc.so.6 and gave them new versions, which the linker takes where it
// finds them, although nothing else has changed: the library would then refuse to load on every older system. Here the
// same functions have the versions that every glibc has. Nothing of this file gets into the library.

#if defined(__x86_64__)
#define FIRST "GLIBC_2.2.5"
#define DLMOPEN "GLIBC_2.3.4"
#elif defined(__aarch64__)
#define FIRST "GLIBC_2.17"
#define DLMOPEN FIRST
#endif

#ifdef FIRST
#define VERSION(name, version) \
  void old_##name(void) {}     \
  __asm__(".symver old_" #name "," #name "@@" version);
#define OLD(name) VERSION(name, FIRST)

// what the static CUDA runtime and torch's headers call
VERSION(dlmopen, DLMOPEN)
OLD(dlclose) OLD(dlerror) OLD(dlopen) OLD(dlsym) OLD(dlvsym) OLD(pthread_condattr_setpshared) OLD(pthread_create)
OLD(pthread_detach) OLD(pthread_getspecific) OLD(pthread_join) OLD(pthread_key_create) OLD(pthread_key_delete)
OLD(pthread_kill) OLD(pthread_mutex_trylock) OLD(pthread_mutexattr_destroy) OLD(pthread_mutexattr_init)
OLD(pthread_mutexattr_setpshared) OLD(pthread_mutexattr_settype) OLD(pthread_once) OLD(pthread_rwlock_destroy)
OLD(pthread_rwlock_init) OLD(pthread_rwlock_rdlock) OLD(pthread_rwlock_timedrdlock) OLD(pthread_rwlock_timedwrlock)
OLD(pthread_rwlock_tryrdlock) OLD(pthread_rwlock_trywrlock) OLD(pthread_rwlock_unlock) OLD(pthread_rwlock_wrlock)
OLD(pthread_rwlockattr_destroy) OLD(pthread_rwlockattr_init) OLD(pthread_rwlockattr_setpshared) OLD(pthread_setspecific)
OLD(pthread_spin_destroy) OLD(pthread_spin_init) OLD(pthread_spin_lock) OLD(pthread_spin_trylock)
OLD(pthread_spin_unlock) OLD(sem_destroy) OLD(sem_init) OLD(sem_post) OLD(sem_timedwait) OLD(sem_trywait) OLD(sem_wait)
OLD(shm_open) OLD(shm_unlink)
#endif
