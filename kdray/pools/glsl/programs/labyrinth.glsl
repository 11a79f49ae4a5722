// Tiles with one diagonal each.
void mainImage(out vec4 colour, in vec2 at) {
    float zoom = between(0, 2.0, 4.0);
    vec2 p = turn(TAU * random(1)) * centred(at) * zoom + 0.4 * iTime + 10.0 * random(2);
    vec2 cell = floor(p), f = p - cell - 0.5;
    if (dice(cell) < 0.5) f.x = -f.x;
    float far = abs(f.x + f.y) * 0.7071;
    float wall = inside(far - between(3, 0.06, 0.16), 2.0 * zoom / 30.0);
    vec3 ground = palette(dot(cell, vec2(0.07, 0.11)) + 0.3 * dice(cell));
    colour = vec4(mix(ground, ink(4), wall), 1);
}
