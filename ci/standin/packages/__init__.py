"""How each conda package is made; a change here makes all of them anew."""
