// Turns C++ exceptions into messages: every bridge function returns null or a malloc'ed text that Rust frees.
#pragma once
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

inline char* message(const std::string& text) {
  char* out = static_cast<char*>(std::malloc(text.size() + 1));
  std::memcpy(out, text.c_str(), text.size() + 1);
  return out;
}

template <typename F>
char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& e) {
    return message(e.what());
  } catch (...) {
    return message("unknown C++ exception");
  }
}
