/* One exported object of BYTES, thread-local or ordinary (STORAGE), in a library (DEFINES) or used by a program. */
#ifdef DEFINES
STORAGE unsigned char object[BYTES] __attribute__((aligned(32))) = { 1 };
#else
extern STORAGE unsigned char object[BYTES] __attribute__((aligned(32)));

int main(void)
{
	return object[0] != 1;
}
#endif
