"""Which solver, how many steps and which guidance weights: a choice by validation cells alone."""
