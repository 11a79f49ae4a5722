// Straight traces with pads, as on a board.
void mainImage(out vec4 colour, in vec2 at) {
    float zoom = between(0, 1.5, 3.0);
    vec2 p = turn(random(1) < 0.6 ? 0.0 : TAU * random(2)) * centred(at) * zoom + 10.0 * random(3) + 0.3 * iTime;
    vec2 cell = floor(p), f = p - cell - 0.5;
    float far = 9.0, pad = length(f) - between(4, 0.15, 0.28);
    if (dice(cell + vec2(0.0, 300.0)) < 0.55) far = min(far, segment(f, vec2(0), vec2(0.5, 0)));
    if (dice(cell + vec2(-1.0, 300.0)) < 0.55) far = min(far, segment(f, vec2(0), vec2(-0.5, 0)));
    if (dice(cell + vec2(0.0, 600.0)) < 0.55) far = min(far, segment(f, vec2(0), vec2(0, 0.5)));
    if (dice(cell + vec2(0.0, 599.0)) < 0.55) far = min(far, segment(f, vec2(0), vec2(0, -0.5)));
    vec3 board = ink(5) * (0.6 + 0.4 * noise(2.0 * p));
    board = mix(board, ink(6), inside(far - between(7, 0.05, 0.12), zoom / 16.0));
    float hole = dice(cell + 900.0);
    vec3 metal = mix(ink(8), palette(hole), 0.5);
    colour = vec4(hole < 0.6 ? mix(board, metal * (1.2 + pad * 2.0), inside(pad, zoom / 16.0)) : board, 1);
}
