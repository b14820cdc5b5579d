# The CMake package `madtp`. Each project that installs a part of it installs these files too; they are the same.
include(CMakePackageConfigHelpers)
write_basic_package_version_file(madtpConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/madtpConfig.cmake.in madtpConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/madtp)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/madtpConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/madtpConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/madtp)
