// Walls along the lines of a grid.
void mainImage(out vec4 colour, in vec2 at) {
    float zoom = between(0, 1.6, 3.5);
    vec2 p = turn(random(1) < 0.5 ? 0.0 : TAU * random(2)) * centred(at) * zoom + 10.0 * random(3) + 0.4 * iTime;
    vec2 cell = floor(p), f = p - cell;
    float left = dice(cell) < 0.5 ? f.x : 9.0, low = dice(cell) < 0.5 ? 9.0 : f.y;
    float right = dice(cell + vec2(1, 0)) < 0.5 ? 1.0 - f.x : 9.0, high = dice(cell + vec2(0, 1)) < 0.5 ? 9.0
        : 1.0 - f.y;
    float far = min(min(left, right), min(low, high)), width = between(4, 0.1, 0.2);
    float wall = inside(far - width, zoom / 16.0), shadow = smoothstep(width, width + 0.35, far);
    vec3 ground = mix(ink(5), palette(noise(0.4 * p)), random(6)) * mix(0.5, 1.0, shadow);
    colour = vec4(mix(ground, ink(7), wall), 1);
}
