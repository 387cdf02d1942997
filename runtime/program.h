/* What main.c and repl.c share: the line editor's entry and the flag that tells the signal handler
 * that a line is being edited. Internal to the program; the library does not see it. */
#ifndef LUNCE_PROGRAM_H
#define LUNCE_PROGRAM_H
#include <signal.h>

struct lua_State;

/* While it is set, Ctrl-C only makes the editor's read fail. */
extern volatile sig_atomic_t program_editing;

/* Pushes the line editor: a table of two functions.
 * edit(prompt, history file or nil) -> the line without its end, or nil and "end" | "interrupted".
 * remember(entry): adds an entry to the history and its file. */
void program_push_editor(struct lua_State *L);

#endif
