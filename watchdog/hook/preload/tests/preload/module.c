/* A module of a program: opens libraries on its behalf, as plug-ins of frameworks do. */
#include <dlfcn.h>

void *open_for_me(const char *name) {
    return dlopen(name, RTLD_NOW);
}
