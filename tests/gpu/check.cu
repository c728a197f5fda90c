// The cases of check.cpp on a device.
#include "check.cpp"
