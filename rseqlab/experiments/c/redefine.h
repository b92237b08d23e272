/* SPDX-License-Identifier: MIT */
/* What the test program of `option-redefine` and those who define libc's names both need. */
#ifndef RSEQLAB_REDEFINE_H
#define RSEQLAB_REDEFINE_H

#include <dlfcn.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#define LOADER "ld-linux-x86-64.so.2"
#else
#define LOADER "ld-linux-aarch64.so.1"
#endif

struct exported {
	ptrdiff_t offset;
	unsigned size, found;
};

/* Asked of the kernel where it can be: in memory it may be overwritten by then. */
static inline void *thread_pointer(void)
{
#ifdef __x86_64__
	unsigned long found = 0;

	syscall(SYS_arch_prctl, 0x1003 /* ARCH_GET_FS */, &found);
	return (void *)found;
#else
	return __builtin_thread_pointer();
#endif
}

/* An address of a loaded object's dynamic section, which the loader has made absolute in most of them. */
static inline uintptr_t placed(const struct link_map *of, uintptr_t address)
{
	return address < of->l_addr ? address + of->l_addr : address;
}

/* What the loader itself exports, whoever else defines the names. dlsym() finds nothing in the loader alone, so
 * its table of symbols is read; it ends where the table of names begins.
 */
__attribute__((unused)) static struct exported exported_by_libc(void)
{
	struct exported told = { 0 };
	struct link_map *loader = dlopen(LOADER, RTLD_LAZY | RTLD_NOLOAD);
	const ElfW(Sym) *symbol = NULL;
	const char *names = NULL;

	for (const ElfW(Dyn) *entry = loader ? loader->l_ld : NULL; entry && entry->d_tag != DT_NULL; entry++) {
		if (entry->d_tag == DT_SYMTAB)
			symbol = (void *)placed(loader, entry->d_un.d_ptr);
		if (entry->d_tag == DT_STRTAB)
			names = (void *)placed(loader, entry->d_un.d_ptr);
	}
	for (; symbol && (const char *)(symbol + 1) <= names; symbol++) {
		const char *name = names + symbol->st_name;
		const void *object = (const void *)(loader->l_addr + symbol->st_value);

		if (!symbol->st_shndx)
			continue;
		if (!strcmp(name, "__rseq_offset"))
			memcpy(&told.offset, object, sizeof(told.offset)), told.found++;
		if (!strcmp(name, "__rseq_size"))
			memcpy(&told.size, object, sizeof(told.size)), told.found++;
	}
	told.found = told.found == 2;
	return told;
}
#endif
