// The parts of the PJRT C interface (openxla/xla, xla/pjrt/c/pjrt_c_api.h, major version 0) that the hook uses. The
// interface only ever grows at the ends of its structures.
#ifndef RESALIGN_PJRT_H
#define RESALIGN_PJRT_H

#include <stddef.h>
#include <stdlib.h>

typedef struct error error;
typedef struct client client;
typedef struct executable executable;
typedef struct loaded loaded;
typedef struct serialized serialized;

typedef struct {
	size_t struct_size;
	void *extensions;
	char *code;
	size_t code_size;
	const char *format;
	size_t format_size;
} program;

typedef struct {
	size_t struct_size;
	void *extensions;
	client *client;
	const program *program;
	const char *options;
	size_t options_size;
	loaded *executable; // out
} compile_args;

typedef struct {
	size_t struct_size;
	void *extensions;
	const executable *executable;
	const char *bytes;  // out
	size_t bytes_size;  // out
	serialized *backing; // out
	void (*release)(serialized *); // out
} serialize_args;

typedef struct {
	size_t struct_size;
	void *extensions;
	client *client;
	const char *bytes;
	size_t bytes_size;
	loaded *executable; // out
	const char *options; // NULL: those it was compiled with
	size_t options_size;
} load_args;

typedef struct {
	size_t struct_size;
	void *extensions;
	loaded *loaded;
	executable *executable; // out
} get_executable_args;

typedef struct {
	size_t struct_size;
	void *extensions;
	void *object;
} object_args; // of functions that destroy something

typedef struct {
	size_t struct_size;
	void *extensions;
	client *client;
	const char *version; // out
	size_t version_size; // out
} platform_version_args;

typedef struct {
	size_t struct_size;
	void *extensions;
	const error *error;
	const char *message; // out
	size_t message_size; // out
} message_args;

// The table of functions; the numbers are those of the functions in the table.
typedef struct {
	size_t struct_size;
	void *extensions;
	struct {
		size_t struct_size;
		void *extensions;
		int major, minor;
	} version;
	void (*error_destroy)(object_args *);   // 0
	void (*error_message)(message_args *);  // 1
	void *before_platform_version[12];      // 2 to 13
	error *(*platform_version)(platform_version_args *); // 14
	void *before_compile[5];                // 15 to 19
	error *(*compile)(compile_args *);      // 20
	void *before_executable_destroy[19];    // 21 to 39
	error *(*executable_destroy)(object_args *); // 40
	void *before_serialize[8];              // 41 to 48
	error *(*serialize)(serialize_args *);  // 49
	void *before_get_executable[1];         // 50
	error *(*get_executable)(get_executable_args *); // 51
	void *before_load[4];                   // 52 to 55
	error *(*load)(load_args *);            // 56
} api;

// resalign_hook copies a table and puts the hook in the place of its function that compiles. NULL: no room for another.
const api *resalign_hook(const api *original, int *slot);

// The functions of an original table.
error *resalign_compile(const api *, compile_args *);
error *resalign_load(const api *, client *, const char *bytes, size_t size, loaded **out);
error *resalign_serialize(const api *, loaded *, serialize_args *out);
void resalign_release(serialize_args *);
error *resalign_platform_version(const api *, client *, const char **out, size_t *size);
void resalign_error(const api *, error *, char *message, size_t room);

// resalign_tidy gives memory that compiling took back to the system.
void resalign_tidy(void);

#endif
