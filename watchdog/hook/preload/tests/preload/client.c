/* A program that asks for NVIDIA's libraries in one of the ways that programs do, and says what it got.
 *
 *   client open FILE          dlopen
 *   client module FILE        dlopen by a module (MODULE in the environment)
 *   client deep FILE          dlopen by a module that was bound deeply
 *   client base FILE          dlmopen into the namespace of the program
 *   client after FILE         dlopen, after the driver was opened by name and asked for something of the management library
 *   client new FILE           dlmopen into a new namespace
 *   client linked             it was linked with the driver (built with -DLINKED)
 *   client other FILE         dlopen of any library, and what the loader says if there is none
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef LINKED
int cuInit(unsigned);
#endif

/* Name of the file that an address lies in. */
static const char *file(void *address) {
    Dl_info info;
    return address && dladdr(address, &info) ? info.dli_fname : "nothing";
}

static int print_loaded(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    if (strstr(info->dlpi_name, "libcuda.so") || strstr(info->dlpi_name, "libnvidia-ml.so"))
        printf("loaded %s\n", info->dlpi_name);
    return 0;
}

static void ask(void *library) {
    int (*first)(const char *, void **, int, unsigned long long) = dlsym(library, "cuGetProcAddress");
    int (*second)(const char *, void **, int, unsigned long long, int *) = dlsym(library, "cuGetProcAddress_v2");
    int (*version)(int *) = dlsym(library, "cuDriverGetVersion");
    void *answer = NULL;
    int number = 0;
    printf("symbol %s\n", file(dlsym(library, "cuInit")));
    printf("versioned symbol %s\n", file(dlvsym(library, "cuInit", "libcuda.so.1")));
    if (first && first("cuLaunchKernel", &answer, 11030, 0) == 0)
        printf("address v1 %s\n", file(answer));
    answer = NULL;
    if (second && second("cuLaunchKernel", &answer, 12000, 0, NULL) == 0)
        printf("address v2 %s\n", file(answer));
    if (version && version(&number) == 0 && number > 0)
        printf("driver answers\n");
}

static void ask_nvml(void *library) {
    const char *(*text)(int) = dlsym(library, "nvmlErrorString");
    printf("symbol %s\n", file(dlsym(library, "nvmlInit_v2")));
    if (text && text(0))
        printf("driver answers\n");
}

int main(int count, char **arguments) {
    const char *how = count > 1 ? arguments[1] : "", *name = count > 2 ? arguments[2] : NULL;
    void *library = NULL;
    if (!strcmp(how, "open") || !strcmp(how, "other")) {
        library = dlopen(name, RTLD_NOW);
    } else if (!strcmp(how, "module") || !strcmp(how, "deep")) {
        int depth = strcmp(how, "deep") ? 0 : RTLD_DEEPBIND;
        void *module = dlopen(getenv("MODULE"), RTLD_NOW | depth);
        void *(*open)(const char *) = module ? dlsym(module, "open_for_me") : NULL;
        library = open ? open(name) : NULL;
    } else if (!strcmp(how, "after")) {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW);
        const char *(*text)(int) = driver ? dlsym(driver, "nvmlErrorString") : NULL;
        if (text)
            text(0);
        library = dlopen(name, RTLD_NOW);
    } else if (!strcmp(how, "base")) {
        library = dlmopen(LM_ID_BASE, name, RTLD_NOW);
    } else if (!strcmp(how, "new")) {
        library = dlmopen(LM_ID_NEWLM, name, RTLD_NOW);
    }
#ifdef LINKED
    if (!strcmp(how, "linked")) {
        printf("direct %s\n", file((void *)cuInit));
        library = dlopen(NULL, RTLD_NOW);
    }
#endif
    if (!library) {
        const char *why = dlerror();
        printf("error %s\n", why ? why : "none");
        return 1;
    }
    if (dlsym(library, "open_for_me"))
        printf("opened %s\n", file(dlsym(library, "open_for_me")));
    else if (name && strstr(name, "libnvidia-ml"))
        ask_nvml(library);
    else
        ask(library);
    dl_iterate_phdr(print_loaded, NULL);
    return 0;
}
