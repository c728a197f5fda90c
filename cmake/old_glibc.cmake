# Links the module for an older glibc than the one that is here, as cmake/wheel.py does.
#
# GOSSAMER_GLIBC is a folder with libraries of that glibc to link against: the symbols that it had,
# under the versions that it gave them. libstdc++ comes along, since its symbols are as new as the
# compiler. libgcc_s and libgomp are not replaced: only old symbols of theirs are used.
target_sources(_core PRIVATE ${CMAKE_CURRENT_LIST_DIR}/old_glibc.cpp)
target_link_options(_core PRIVATE
  -L${GOSSAMER_GLIBC} -static-libstdc++ -Wl,--exclude-libs,ALL
  -Wl,--gc-sections)  # parts of libstdc++ that nobody calls ask for newer symbols
# Libraries of their own until glibc 2.34. What programs got as code (pthread_atfork) comes last.
target_link_libraries(_core PRIVATE -ldl -lpthread -lld -l:libc_nonshared.a)
