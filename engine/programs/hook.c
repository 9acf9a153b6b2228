//go:build xla && linux && cgo

#include "pjrt.h"

#include <stdlib.h>
#include <string.h>

extern error *resalignCompile(int slot, compile_args *args); // Go

// C functions carry no state, so each plugin has one of its own that says which it is.
#define HOOK(n) \
	static error *hook##n(compile_args *args) { return resalignCompile(n, args); }
HOOK(0) HOOK(1) HOOK(2) HOOK(3) HOOK(4) HOOK(5) HOOK(6) HOOK(7)

static error *(*const hooks[])(compile_args *) = {hook0, hook1, hook2, hook3, hook4, hook5, hook6, hook7};
static int used;

const api *resalign_hook(const api *original, int *slot) {
	if (used == sizeof hooks / sizeof *hooks || original->struct_size < sizeof(api)) return NULL;
	api *copy = malloc(original->struct_size);
	if (copy == NULL) return NULL;
	memcpy(copy, original, original->struct_size);
	*slot = used++;
	copy->compile = hooks[*slot];
	return copy;
}

error *resalign_compile(const api *a, compile_args *args) { return a->compile(args); }

error *resalign_load(const api *a, client *c, const char *bytes, size_t size, loaded **out) {
	load_args args = {.struct_size = sizeof args, .client = c, .bytes = bytes, .bytes_size = size};
	error *e = a->load(&args);
	*out = args.executable;
	return e;
}

error *resalign_serialize(const api *a, loaded *l, serialize_args *out) {
	get_executable_args get = {.struct_size = sizeof get, .loaded = l};
	error *e = a->get_executable(&get);
	if (e != NULL) return e;
	memset(out, 0, sizeof *out);
	out->struct_size = sizeof *out;
	out->executable = get.executable;
	e = a->serialize(out);
	object_args destroy = {.struct_size = sizeof destroy, .object = get.executable};
	error *second = a->executable_destroy(&destroy);
	if (second != NULL) {
		object_args drop = {.struct_size = sizeof drop, .object = second};
		a->error_destroy(&drop);
	}
	return e;
}

void resalign_release(serialize_args *s) {
	if (s->release != NULL) s->release(s->backing);
}

error *resalign_platform_version(const api *a, client *c, const char **out, size_t *size) {
	platform_version_args args = {.struct_size = sizeof args, .client = c};
	error *e = a->platform_version(&args);
	*out = args.version;
	*size = args.version_size;
	return e;
}

// resalign_error takes an error's message, as far as there is room, and destroys it.
void resalign_error(const api *a, error *e, char *message, size_t room) {
	message_args args = {.struct_size = sizeof args, .error = e};
	a->error_message(&args);
	size_t size = args.message_size < room - 1 ? args.message_size : room - 1;
	memcpy(message, args.message, size);
	message[size] = 0;
	object_args destroy = {.struct_size = sizeof destroy, .object = e};
	a->error_destroy(&destroy);
}

#ifdef __GLIBC__
#include <malloc.h>
#endif

// resalign_tidy gives memory that compiling took back to the system, where the C library keeps it.
void resalign_tidy(void) {
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}
