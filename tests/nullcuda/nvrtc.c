/* NVRTC that compiles each kernel once.
 *
 * A test starts the program some sixty times, and each time it would compile the same fifty kernels. This stands before the real
 * NVRTC: what a source and its options came to is kept in the folder NULLCUDA_PTX, under their hash and the compiler's version, and a
 * failure is never kept. The text of the source is kept with it and compared, so two that have one hash are not mistaken.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

typedef int Result; /* 0 is NVRTC_SUCCESS */
typedef struct {
    void *real; /* the program of the real NVRTC */
    char *source, *ptx;
    size_t size;
} Program;

static void *real(const char *name) {
    static void *library;
    if (!library) library = dlopen(getenv("NULLCUDA_NVRTC"), RTLD_NOW | RTLD_LOCAL);
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) {
        fprintf(stderr, "[nullcuda] no %s in NULLCUDA_NVRTC\n", name);
        abort();
    }
    return found;
}
#define REAL(name, ...) ((Result(*)())real(#name))(__VA_ARGS__)

Result nvrtcVersion(int *major, int *minor) { return REAL(nvrtcVersion, major, minor); }
const char *nvrtcGetErrorString(Result e) { return ((const char *(*)(Result))real("nvrtcGetErrorString"))(e); }

Result nvrtcCreateProgram(void **made, const char *source, const char *name, int count, const char *const *headers, const char *const *names) {
    Program *program = calloc(1, sizeof *program);
    program->source = strdup(source);
    *made = program;
    return REAL(nvrtcCreateProgram, &program->real, source, name, count, headers, names);
}

Result nvrtcDestroyProgram(void **made) {
    Program *program = *made;
    Result result = REAL(nvrtcDestroyProgram, &program->real);
    free(program->source);
    free(program->ptx);
    free(program);
    *made = NULL;
    return result;
}

static uint64_t hash(uint64_t seed, const char *text) { return XXH3_64bits_withSeed(text, strlen(text) + 1, seed); }

/* The file's parts: the source's length, the source, the PTX. */
static int kept(Program *program, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    fseek(file, 0, SEEK_END);
    long all = ftell(file);
    rewind(file);
    size_t length = 0, known = strlen(program->source);
    char *source = malloc(known + 1);
    int same = fread(&length, sizeof length, 1, file) == 1 && length == known && fread(source, 1, known, file) == known &&
               !memcmp(source, program->source, known);
    if (same) {
        program->size = all - sizeof length - known;
        program->ptx = malloc(program->size);
        same = fread(program->ptx, 1, program->size, file) == program->size;
        if (!same) { free(program->ptx); program->ptx = NULL; }
    }
    free(source);
    fclose(file);
    return same;
}

static void keep(Program *program, const char *path) {
    char beside[4200];
    snprintf(beside, sizeof beside, "%s.%d", path, (int)getpid());
    FILE *file = fopen(beside, "wb");
    if (!file) return;
    size_t length = strlen(program->source);
    int whole = fwrite(&length, sizeof length, 1, file) == 1 && fwrite(program->source, 1, length, file) == length &&
                fwrite(program->ptx, 1, program->size, file) == program->size;
    whole &= !fclose(file);
    if (!whole || rename(beside, path)) unlink(beside);
}

Result nvrtcCompileProgram(void *made, int count, const char *const *options) {
    Program *program = made;
    int major = 0, minor = 0;
    nvrtcVersion(&major, &minor);
    uint64_t key = hash(0, program->source);
    for (int i = 0; i < count; i++) key = hash(key, options[i]);
    char path[4100];
    snprintf(path, sizeof path, "%s/%d.%d-%016llx", getenv("NULLCUDA_PTX"), major, minor, (unsigned long long)key);
    if (kept(program, path)) return 0;
    Result result = REAL(nvrtcCompileProgram, program->real, count, options);
    if (!result && !REAL(nvrtcGetPTXSize, program->real, &program->size)) {
        program->ptx = malloc(program->size);
        if (!REAL(nvrtcGetPTX, program->real, program->ptx)) keep(program, path);
    }
    return result;
}

Result nvrtcGetProgramLogSize(void *made, size_t *size) { return REAL(nvrtcGetProgramLogSize, ((Program *)made)->real, size); }
Result nvrtcGetProgramLog(void *made, char *log) { return REAL(nvrtcGetProgramLog, ((Program *)made)->real, log); }
Result nvrtcGetPTXSize(void *made, size_t *size) { *size = ((Program *)made)->size; return 0; }
Result nvrtcGetPTX(void *made, char *ptx) { memcpy(ptx, ((Program *)made)->ptx, ((Program *)made)->size); return 0; }
