#include "madtp/engine.hpp"
namespace madtp { Error::Error(Code c,std::string s,std::string w,std::string f):std::runtime_error(s+"\n"+w+"\n"+f),code_(c),summary_(s),why_(w),fix_(f){} Error::~Error()=default; }
