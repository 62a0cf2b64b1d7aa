// Included once in each library: with old_glibc.c, it loads where glibc is older than where it was built.

#pragma once

#if defined(__linux__)
// glibc has this variable from 2.32 on. libstdc++ reads in it whether there is one thread, whose counters need no
// atomics; our own says that there are always more.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
