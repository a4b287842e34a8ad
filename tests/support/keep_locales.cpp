#include <locale.h>

/// Loaded into nbdkit in sanitizer builds. With a sanitizer's runtime loaded first, Debian 12's
/// nbdkit hangs in exit() once it has printed a strerror(): a destructor of libp11-kit then waits
/// in freelocale() for a lock that the C library thinks is held. The process ends anyway.
extern "C" void freelocale(locale_t) noexcept {}
