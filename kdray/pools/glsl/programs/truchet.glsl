// Tiles with two arcs each, that join to loops.
void mainImage(out vec4 colour, in vec2 at) {
    float zoom = between(0, 1.5, 3.5);
    vec2 p = turn(TAU * random(1)) * centred(at) * zoom + 0.3 * iTime + 10.0 * random(2);
    vec2 cell = floor(p), f = p - cell;
    if (dice(cell) < 0.5) f.x = 1.0 - f.x;
    float far = min(abs(length(f) - 0.5), abs(length(f - 1.0) - 0.5));
    float width = between(3, 0.08, 0.22), pipe = inside(far - width, 2.0 * zoom / 30.0);
    vec3 ground = mix(ink(4), palette(noise(0.5 * p)), random(5));
    colour = vec4(mix(ground, ink(6) * (1.2 - 0.8 * far / width), pipe), 1);
}
