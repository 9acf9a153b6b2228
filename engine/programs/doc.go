// Package programs stands between the graph library and a plugin's compiler: it tells the compiler which inputs a program
// gives up, so that outputs can be placed in their memory, and keeps compiled programs between runs. The library's
// bindings do neither.
package programs
