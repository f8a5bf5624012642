#include "team.h"

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <cstring>
#include <mutex>
#endif

namespace roundel {

// torch's wheel has its OpenMP library inside, under a name that nobody can link against; but it is loaded, and its
// entry for compiled code is public. Threads of our own beside that team would share the processors with it: its members
// look for work for milliseconds before they sleep, and between two of our products torch gives them some.
#ifdef __linux__
namespace {

std::atomic<RunTeam> team{nullptr};

int look_at(dl_phdr_info* library, size_t, void*) {
  const char* file = std::strrchr(library->dlpi_name, '/');
  if (file == nullptr || std::strstr(file, "gomp") == nullptr || std::strstr(library->dlpi_name, "torch") == nullptr) return 0;
  if (void* handle = dlopen(library->dlpi_name, RTLD_LAZY | RTLD_NOLOAD))
    team = reinterpret_cast<RunTeam>(dlsym(handle, "GOMP_parallel"));
  return team != nullptr;
}

}  // namespace

RunTeam torch_team() {
  static std::once_flag once;
  std::call_once(once, [] {
    dl_iterate_phdr(look_at, nullptr);
    pthread_atfork(nullptr, nullptr, [] { team = nullptr; });
  });
  return team;
}
#else
RunTeam torch_team() { return nullptr; }
#endif

}  // namespace roundel
