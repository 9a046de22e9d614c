"""The pages in a real browser, and their modules in Node (`*.test.mjs`)."""
